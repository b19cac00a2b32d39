"""Freed memory that stays with the process, where the C library is glibc."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8  # of glibc's malloc.h
_LARGEST = 2**31 - 1
# What glibc raises them to at most by itself.
_USUAL_TRIM, _USUAL_MMAP = 2**26, 2**25


def _glibc() -> Any:
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None


def keep_freed_memory() -> None:
    """Let this process use up to 256 MiB of freed memory again rather than return it to the system.

    The system clears each page that it hands out again. For an image that takes longer than decoding it.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(_TRIM_THRESHOLD, 2**28)
        libc.mallopt(_MMAP_THRESHOLD, _USUAL_MMAP)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep all freed memory while this lasts, as `keep_freed_memory` does with some.

    Threads share the memory, so that none holds some back.
    """
    if (libc := _glibc()) is None:
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
    libc.mallopt(_TRIM_THRESHOLD, _LARGEST)
    libc.mallopt(_ARENA_MAX, 1)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _USUAL_MMAP)
        libc.mallopt(_TRIM_THRESHOLD, _USUAL_TRIM)
        libc.mallopt(_ARENA_MAX, 0)
        libc.malloc_trim(0)
