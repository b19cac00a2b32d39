"""Resources of the Triton kernels, from the compiler. Needs no GPU."""

import pytest
import torch

pytest.importorskip("triton.backends.nvidia")


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Resources of every kernel at the sizes of a training step, compiled with an empty cache."""
    from tools import triton_resources

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        return triton_resources.resources((torch.float32, torch.bfloat16))


def test_nothing_spills(rows):
    assert len(rows) == 20
    assert [row for row in rows if row.spill_bytes] == []


def test_programs_of_a_kernel_run_at_once(rows):
    """At most two waves on 108 multiprocessors with 64 Ki registers and 2,048 threads each."""
    for row in rows:
        threads = 32 * row.warps
        held = min(65536 // (row.registers * threads), 2048 // threads)
        assert row.programs <= 2 * 108 * held, row
