"""Freed memory that stays with the process."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST = 2**31 - 1
# What glibc raises them to at most by itself.
_USUAL_TRIM, _USUAL_MMAP = 2**26, 2**25


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let glibc's malloc keep freed memory for the next image, rather than return it to the system.

    The system clears each page that it hands out again. For the maps of large images that takes longer than
    computing them. Elsewhere than on Linux with glibc, nothing changes.
    """
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        yield
        return
    libc.mallopt(_MMAP_THRESHOLD, _LARGEST)
    libc.mallopt(_TRIM_THRESHOLD, _LARGEST)
    try:
        yield
    finally:
        libc.mallopt(_MMAP_THRESHOLD, _USUAL_MMAP)
        libc.mallopt(_TRIM_THRESHOLD, _USUAL_TRIM)
        libc.malloc_trim(0)
