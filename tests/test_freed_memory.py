"""Freed memory that stays with the process."""

import resource
import sys
from pathlib import Path

import pytest
import torch

from sp_fast.freed_memory import freed_memory_kept

BYTES = 2**28
PAGE = resource.getpagesize()


def faults_of_using_memory() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(BYTES // 4)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_memory_is_cleared_once_and_returned_at_the_end() -> None:
    with freed_memory_kept():
        # Aligned memory does not always fit where the same had been.
        faults = sum(faults_of_using_memory() for _ in range(12))
        assert faults < 6 * BYTES // PAGE
        kept = resident()
    assert resident() < kept - BYTES // 2
