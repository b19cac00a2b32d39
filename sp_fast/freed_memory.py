"""Freed memory that stays with the process, where the C library is glibc."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
_LARGEST = 2**31 - 1
# What glibc raises them to at most by itself.
_USUAL_TRIM, _USUAL_MMAP = 2**26, 2**25
_LARGEST_KEPT = 2**31  # bytes
_SMALL = 2**33  # bytes


def address_space_is_small() -> bool:
    """Whether this process has a limit of its address space below 8 GiB (`ulimit -v`)."""
    if sys.platform == "win32":
        return False
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return limit != resource.RLIM_INFINITY and limit < _SMALL


def keep_freed_memory() -> None:
    """Let this process use up to 256 MiB of freed memory again rather than return it to the system.

    The system clears each page that it hands out again. For an image that takes longer than decoding it.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(_TRIM_THRESHOLD, 2**28)
        libc.mallopt(_MMAP_THRESHOLD, _USUAL_MMAP)


def save_address_space() -> None:
    """Use one thread for computing and one heap for all threads; a heap of its own reserves 64 MiB a thread.

    Call it before PyTorch is imported.
    """
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if (libc := _glibc()) is not None:
        libc.mallopt(_ARENA_MAX, 1)


@contextmanager
def freed_memory_kept() -> Iterator[Callable[[], None]]:
    """Keep all freed memory while this lasts. Threads share it, so that none holds some back.

    In a small address space, which counts what is kept, nothing changes.

    Yields:
        Function to call now and then: returns freed memory if the process has grown by more than 2 GiB, since
        aligned memory does not always fit where the same had been.
    """
    if (libc := _glibc()) is None or address_space_is_small():
        yield lambda: None
        return
    most = _resident() + _LARGEST_KEPT

    def release() -> None:
        if _resident() > most:
            libc.malloc_trim(0)

    libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
    libc.mallopt(_TRIM_THRESHOLD, _LARGEST)
    libc.mallopt(_ARENA_MAX, 1)
    try:
        yield release
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _USUAL_MMAP)
        libc.mallopt(_TRIM_THRESHOLD, _USUAL_TRIM)
        libc.mallopt(_ARENA_MAX, 0)
        libc.malloc_trim(0)


def _glibc() -> Any:
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None


def _resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
