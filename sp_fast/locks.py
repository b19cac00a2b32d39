"""Locks on files and folders, for processes that share work; released when the holder exits."""

from __future__ import annotations

import contextlib
import errno
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

LOCK = "lock"


def try_lock(path: Path) -> int | None:
    """Lock a file, created if needed: a descriptor that holds the lock, or None if another process does."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _lock(handle, path, wait=False)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


@contextlib.contextmanager
def turn_in(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, created if needed; waits until no other process holds it."""
    file = None
    while file is None:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # the process before has removed the folder just now
            file = (folder / LOCK).open("w")
    with file:
        _lock(file.fileno(), folder / LOCK, wait=True)
        yield


def _lock(handle: int, path: Path, *, wait: bool) -> None:
    if fcntl is None:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        warnings.warn(
            f"the file system of {path.parent} has no locks: take care not to start the same twice at once",
            stacklevel=3,
        )
