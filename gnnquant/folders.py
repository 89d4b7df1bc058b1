"""Files: where those are kept that can be made again, and how they are written whole."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def cache_folder(part: str) -> Path:
    """The user's folder for one kind of file, which may not exist yet (XDG Base Directory Specification)."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "gnnquant" / part


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write ``data`` to ``path``; under that name there is the complete file or the old one."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(16)}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
