"""PackedMasks against plain boolean masks."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sp_fast.ops import PackedMasks
from sp_fast.ops.extension import COMPILED
from tests.ops.op_cases import SEEDS, generator

SIZES = st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 9), st.integers(0, 40))


@given(SIZES, st.sampled_from([0.0, 0.05, 0.5, 1.0]), SEEDS)
def test_pack_unpack_area_and_boxes(size, density, seed):
    masks = torch.rand(size, generator=generator(seed)) < density
    packed = PackedMasks.pack(masks)
    assert packed.words.dtype == torch.int32
    assert tuple(packed.shape) == size[:2]
    assert torch.equal(packed.unpack(), masks)
    assert torch.equal(packed.area(), masks.sum((-2, -1)).to(torch.int32))
    boxes = packed.boxes()
    assert boxes.dtype == torch.int32
    for image, number in torch.cartesian_prod(torch.arange(size[0]), torch.arange(size[1])).tolist():
        cells = masks[image, number].nonzero()
        expected = [0, 0, 0, 0]
        if len(cells):
            (y0, x0), (y1, x1) = cells.amin(0).tolist(), (cells.amax(0) + 1).tolist()
            expected = [x0, y0, x1, y1]
        assert boxes[image, number].tolist() == expected


def test_bit_k_of_word_j_is_cell_32_j_plus_k():
    for cell in (0, 1, 30, 31, 32, 63, 64, 69):
        mask = torch.zeros(70, dtype=torch.bool)
        mask[cell] = True
        words = PackedMasks.pack(mask.view(7, 10)).words
        expected = [0, 0, 0]
        expected[cell // 32] = 1 << (cell % 32) if cell % 32 < 31 else -(1 << 31)
        assert words.tolist() == expected


def test_bits_past_the_last_cell_are_zero():
    assert PackedMasks.pack(torch.ones(1, 5, 7, dtype=torch.bool)).words.tolist() == [[-1, 0b111]]


@pytest.mark.skipif(not COMPILED, reason="needs the compiled extension")
@pytest.mark.parametrize("width", [64, 61])
def test_any_byte_but_0_is_inside(width):
    cells = torch.randint(0, 256, (3, 5, width), generator=generator(0), dtype=torch.uint8)
    cells[torch.rand(cells.shape, generator=generator(1)) < 0.5] = 0
    assert torch.equal(PackedMasks.pack(cells.view(torch.bool)).unpack(), cells != 0)


def test_indexing_follows_the_leading_dimensions():
    masks = torch.rand(3, 4, 5, 7) < 0.5
    packed = PackedMasks.pack(masks)
    some = torch.tensor([2, 0])
    for index in (0, slice(1, None), (0, 2), some, (slice(None), some)):
        assert torch.equal(packed[index].unpack(), masks[index])
    assert torch.equal(packed[..., 1].unpack(), masks[:, 1])
    chosen = torch.rand(3, 4) < 0.5
    assert torch.equal(packed[chosen].unpack(), masks[chosen])
    assert len(packed) == 3
    assert [torch.equal(p.unpack(), m) for p, m in zip(packed, masks, strict=True)] == [True] * 3
    with pytest.raises(IndexError):
        packed[0, 0, 0]


def test_to_moves_the_words():
    packed = PackedMasks.pack(torch.ones(2, 3, 3, dtype=torch.bool)).to("meta")
    assert packed.device.type == "meta"
    assert (packed.height, packed.width) == (3, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: PackedMasks.pack(torch.rand(4, 4)),
            TypeError,
            "masks: expected dtype bool, got torch.float32",
        ),
        (lambda: PackedMasks.pack([[True]]), TypeError, "masks: expected a tensor, got list"),
        (lambda: PackedMasks.pack(torch.ones(3, dtype=torch.bool)), ValueError, r"masks: .*\[..., H, W\]"),
        (lambda: PackedMasks(torch.zeros(2, 1), 4, 4), TypeError, "words: expected dtype int32"),
        (lambda: PackedMasks(torch.zeros(2, 1).int(), 4, 9), ValueError, r"words: expected shape \[..., 2\]"),
        (lambda: PackedMasks(torch.zeros(2, 1).int(), 4.0, 4), TypeError, "height: expected an int"),
        (
            lambda: PackedMasks(torch.zeros(2, 1).int(), 4, -4),
            ValueError,
            "width: expected an int of at least 0",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()
