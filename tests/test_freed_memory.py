"""Freed memory that stays with the process, measured in new processes: earlier tests fragment memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sp_fast import freed_memory
from sp_fast.freed_memory import freed_memory_kept

resource = pytest.importorskip("resource")
BYTES = 2**28

pytestmark = pytest.mark.skipif(freed_memory._glibc() is None, reason="needs glibc")


def faults_of_using(size: int) -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(size, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.parametrize("check", ["cleared_once_and_returned", "growth", "small_address_space"])
def test_in_a_new_process(check: str) -> None:
    code = f"from tests import test_freed_memory; test_freed_memory.check_{check}()"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def check_cleared_once_and_returned() -> None:
    """Memory is cleared once and returned at the end."""
    pages = BYTES // resource.getpagesize()
    with freed_memory_kept():
        faults_of_using(BYTES)
        # Aligned memory does not always fit where the same had been, but less does.
        assert faults_of_using(BYTES * 7 // 8) < pages // 100
        kept = freed_memory._resident()
    assert freed_memory._resident() < kept - BYTES // 2


def check_growth() -> None:
    """What is kept has a limit."""
    freed_memory._LARGEST_KEPT = BYTES
    before = freed_memory._resident()
    with freed_memory_kept() as limit_kept:
        for _ in range(12):
            faults_of_using(BYTES)
            limit_kept()
            assert freed_memory._resident() < before + 2 * BYTES


@pytest.mark.parametrize(
    ("limit", "small"), [(resource.RLIM_INFINITY, False), (2**36, False), (4_096_000_000, True)]
)
def test_small_address_spaces(limit: int, small: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda of: (limit, resource.RLIM_INFINITY))
    assert freed_memory.address_space_is_small() is small


def check_small_address_space() -> None:
    """Nothing is kept in a small address space."""
    freed_memory.address_space_is_small = lambda: True
    before = freed_memory._resident()
    with freed_memory_kept():
        faults_of_using(BYTES)
        assert freed_memory._resident() < before + BYTES // 2
