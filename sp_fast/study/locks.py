"""Several processes in one folder: each seed belongs to one; what all need one makes while others wait."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # on Windows, where nothing is locked
    fcntl = None  # type: ignore[assignment]

LOCK = "lock"


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keeps other processes from working in a folder, which is made.

    Raises:
        BlockingIOError: another process does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BlockingIOError(
                    f"--seeds: another process works in {folder}; wait for it, or choose other seeds"
                ) from None
        yield


@contextlib.contextmanager
def turn_in(folder: Path) -> Iterator[None]:
    """Waits until no other process works in a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
