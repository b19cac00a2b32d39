"""The CUDA kernels of packed masks, run on the CPU, against the reference."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sp_fast.ops import packing
from tests.ops.op_cases import SEEDS, generator, scattered

SIZES = st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 9), st.integers(0, 40))
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def ops(on_cpu):
    return on_cpu("packed_masks")


def check(ops, masks):
    height, width = masks.shape[-2:]
    words = ops.pack_masks(masks)
    assert torch.equal(words, packing.pack_masks(masks))
    assert torch.equal(ops.unpack_masks(words, height, width), masks)
    assert torch.equal(ops.unpack_masks(scattered(words), height, width), masks)
    assert torch.equal(ops.mask_areas(words), packing.mask_areas(words))
    assert torch.equal(ops.mask_boxes(words, height, width), packing.mask_boxes(words, height, width))


@FEW
@given(size=SIZES, density=st.sampled_from([0.0, 0.02, 0.5, 1.0]), seed=SEEDS)
def test_any_size(ops, size, density, seed):
    check(ops, torch.rand(size, generator=generator(seed)) < density)


@pytest.mark.parametrize("size", [(3, 16, 64), (2, 33, 97), (1, 1, 4000), (300, 2, 16), (2, 100, 32)])
def test_several_tiles_and_blocks(ops, size):
    for density in (0.003, 0.5):
        check(ops, torch.rand(size, generator=generator(0)) < density)


@pytest.mark.parametrize("width", [32, 31])
def test_strided_and_misaligned_masks(ops, width):
    masks = torch.rand(3, 5, width, generator=generator(0)) < 0.5
    assert torch.equal(ops.pack_masks(scattered(masks)), packing.pack_masks(masks))
    shifted = torch.cat([torch.zeros(1, dtype=torch.bool), masks.flatten()])[1:].view(masks.shape)
    assert torch.equal(ops.pack_masks(shifted), packing.pack_masks(masks))


@pytest.mark.parametrize("width", [64, 61])
def test_any_byte_but_0_is_inside(ops, width):
    cells = torch.randint(0, 256, (3, 5, width), generator=generator(0), dtype=torch.uint8)
    cells[torch.rand(cells.shape, generator=generator(1)) < 0.5] = 0
    assert torch.equal(ops.pack_masks(cells.view(torch.bool)), packing.pack_masks(cells != 0))
