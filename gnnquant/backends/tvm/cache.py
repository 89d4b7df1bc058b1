"""Compiled libraries, kept between processes under a digest of everything they are made from."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from gnnquant.folders import cache_folder

if TYPE_CHECKING:
    from collections.abc import Callable

VARIABLE = "GNNQUANT_CACHE"
"""Environment variable: a folder instead of the user's cache folder, or ``off``."""
LIMIT = 256 << 20
"""Bytes that the folder may hold; what was not used for longest goes first."""
ABANDONED = 3600
"""Seconds after which nobody writes a file any more."""
SUFFIX = ".so"
DIGEST = hashlib.sha256().digest_size


def cached(recipe: str, make: Callable[[], bytes]) -> bytes:
    """What ``make`` returned for the same ``recipe`` before, now or in another process; else call it.

    An entry carries a digest of itself: what was cut short or altered is made anew. Entries appear under
    their names whole (written aside, then renamed), so any number of processes may share a folder.
    A folder that cannot be used costs time, not the result: there is a warning.
    """
    folder = _folder()
    if folder is None:
        return make()
    path = folder / f"{hashlib.sha256(recipe.encode()).hexdigest()}{SUFFIX}"
    try:
        _open(folder)
        found = _read(path)
    except OSError as error:
        warnings.warn(
            f"compiled kernels cannot be kept in {folder} ({error}); make it writable for you alone, or "
            f"set {VARIABLE} to another folder or to 'off'",
            stacklevel=2,
        )
        return make()
    if found is not None:
        return found
    library = make()
    try:
        _write(path, library)
        _prune(folder)
    except OSError as error:
        warnings.warn(f"compiled kernels could not be kept in {folder}: {error}", stacklevel=2)
    return library


def _folder() -> Path | None:
    given = os.environ.get(VARIABLE)
    if given == "off":
        return None
    return Path(given).expanduser() if given else cache_folder("kernels")


def _open(folder: Path) -> None:
    """Create the folder; refuse one in which others could place code."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_mode & 0o022 or folder.stat().st_uid != os.getuid():
        raise PermissionError("other users may write there, and code is loaded from it")


def _read(path: Path) -> bytes | None:
    try:
        entry = path.read_bytes()
    except FileNotFoundError:
        return None
    digest, library = entry[:DIGEST], entry[DIGEST:]
    if hashlib.sha256(library).digest() != digest:
        path.unlink(missing_ok=True)
        return None
    with contextlib.suppress(FileNotFoundError):  # another process has pruned it since
        os.utime(path)
    return library


def _write(path: Path, library: bytes) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix="new-", delete=False) as file:
        try:
            file.write(hashlib.sha256(library).digest() + library)
            file.close()
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


def _prune(folder: Path) -> None:
    """Delete the entries that were not used for longest, until the rest is within the limit."""
    entries = []
    for path in folder.iterdir():
        try:
            status = path.stat()
        except FileNotFoundError:  # another process prunes too
            continue
        if path.suffix == SUFFIX:
            entries.append((status.st_mtime_ns, status.st_size, path))
        elif status.st_mtime < time.time() - ABANDONED:  # its process was killed while writing
            path.unlink(missing_ok=True)
    size = sum(entry[1] for entry in entries)
    for _, bytes_, path in sorted(entries):
        if size <= LIMIT:
            return
        path.unlink(missing_ok=True)
        size -= bytes_
