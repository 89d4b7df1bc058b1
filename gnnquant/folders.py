"""Files: where those are kept that can be made again, and how they are written whole."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path


def cache_folder(part: str) -> Path:
    """The user's folder for one kind of file, which may not exist yet (XDG Base Directory Specification)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gnnquant" / part


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path``; under that name there is the complete file or the old one.

    Links are followed. What exists and is no file (``/dev/stdout``, a pipe) is written to as it is.

    Raises:
        OSError: It cannot be written; ``filename`` is ``path``.
    """
    given = Path(path)
    target = Path(os.path.realpath(given))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(16)}")
    try:
        if given.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if given.exists() and not given.is_file():
            given.write_bytes(data)
            return
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        if error.errno is None:
            raise
        # The name of the unfinished file would say nothing to who asked for another one.
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
