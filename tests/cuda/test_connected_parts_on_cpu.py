"""The CUDA kernel of connected_parts, run on the CPU, against the reference."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from sp_fast.ops import PackedMasks, reference
from tests.ops.op_cases import checkerboard, generator, masks_in_parts, scattered, spiral

FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def ops(on_cpu):
    return on_cpu("connected_parts")


def check(ops, cells, max_parts=8, min_area=1, connectivity=8, expected=None):
    masks = PackedMasks.pack(cells)
    if expected is None:
        parts, count = reference.connected_parts(
            masks, max_parts=max_parts, min_area=min_area, connectivity=connectivity
        )
        expected = parts.words, count
    for words in (masks.words, scattered(masks.words)):
        got = ops.connected_parts(words, *cells.shape[-2:], max_parts, min_area, connectivity)
        for one, other in zip(got, expected, strict=True):
            assert torch.equal(one, other)


@FEW
@given(drawn=masks_in_parts())
def test_same_as_the_reference(ops, drawn):
    cells, options = drawn
    check(ops, cells, **options)


@pytest.mark.parametrize("connectivity", [4, 8])
def test_winding_and_full_masks(ops, connectivity):
    for cells in (spiral(33), spiral(80).flip(1), checkerboard(7, 33), torch.ones(70, 40, dtype=torch.bool)):
        check(ops, torch.stack([cells, ~cells]), connectivity=connectivity)


@pytest.mark.parametrize("size", [(150, 33), (2, 500)])
def test_more_rows_than_threads_and_long_rows(ops, size):
    check(ops, torch.rand(3, *size, generator=generator(0)) < 0.5, max_parts=20, min_area=2)


def test_masks_too_large_for_shared_memory(ops):
    """Blocks take several masks in turn, their forests in global memory."""
    cells = torch.rand(260, 400, 300, generator=generator(1)) < 0.002
    cells[[0, 259]] = torch.rand(2, 400, 300, generator=generator(2)) < 0.4
    words = PackedMasks.pack(cells).words
    expected = torch.ops.sp_fast.connected_parts(words, 400, 300, 3, 1, 8)
    check(ops, cells, max_parts=3, expected=expected)


def test_checks(ops):
    words = torch.zeros(2, 1, dtype=torch.int32)
    with pytest.raises(ValueError, match="connectivity"):
        ops.connected_parts(words, 4, 5, 8, 1, 6)
    with pytest.raises(ValueError, match="words: expected 2 words"):
        ops.connected_parts(words, 5, 7, 8, 1, 8)
    with pytest.raises(ValueError, match=r"2\^30 cells"):
        ops.connected_parts(words[:1].expand(1, 2**26), 2**16, 2**15, 8, 1, 8)
