"""Freed memory that stays with the process."""

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


def test_memory_is_cleared_once_and_returned_at_the_end() -> None:
    pages = BYTES // resource.getpagesize()
    with freed_memory_kept():
        faults_of_using(BYTES)
        # Aligned memory does not always fit where the same had been, but less does.
        assert faults_of_using(BYTES * 7 // 8) < pages // 100
        kept = freed_memory._resident()
    assert freed_memory._resident() < kept - BYTES // 2


def test_growth_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freed_memory, "_LARGEST_KEPT", BYTES)
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


def test_nothing_is_kept_in_a_small_address_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freed_memory, "address_space_is_small", lambda: True)
    before = freed_memory._resident()
    with freed_memory_kept():
        faults_of_using(BYTES)
        assert freed_memory._resident() < before + BYTES // 2
