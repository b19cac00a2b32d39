"""connected_parts against the reference, SciPy and shapes whose parts are known."""

import pytest
import torch
from hypothesis import given
from scipy import ndimage

from sp_fast.ops import PackedMasks, connected_parts, reference
from tests.ops.op_cases import checkerboard, masks_in_parts, needs_extension, scattered, spiral

BOTH = pytest.mark.parametrize(
    "function", [connected_parts, reference.connected_parts], ids=["op", "reference"]
)


def parts_of(cells: torch.Tensor, **options) -> list[torch.Tensor]:
    """The parts of one mask, without the padding."""
    parts, count = connected_parts(PackedMasks.pack(cells), **options)
    return list(parts.unpack()[:count])


def parts_by_scipy(
    mask: torch.Tensor, max_parts: int, min_area: int, connectivity: int
) -> list[torch.Tensor]:
    """Label in row-major order of the first cells; sorting by area keeps it among equal areas."""
    structure = torch.ones(3, 3).numpy() if connectivity == 8 else None
    label, number = ndimage.label(mask.numpy(), structure)
    parts = [torch.from_numpy(label == k) for k in range(1, number + 1)]
    parts.sort(key=lambda part: int(part.sum()), reverse=True)
    return [part for part in parts if part.sum() >= min_area][:max_parts]


@needs_extension
@given(masks_in_parts())
def test_same_as_the_reference(drawn):
    cells, options = drawn
    masks = PackedMasks.pack(cells)
    expected, expected_count = reference.connected_parts(masks, **options)
    for words in (masks.words, scattered(masks.words)):
        parts, count = connected_parts(PackedMasks(words, masks.height, masks.width), **options)
        assert parts.words.dtype == torch.int32
        assert torch.equal(parts.words, expected.words)
        assert torch.equal(count, expected_count)


@BOTH
@given(drawn=masks_in_parts())
def test_same_as_scipy(function, drawn):
    cells, options = drawn
    parts, count = function(PackedMasks.pack(cells), **options)
    assert parts.shape == (*cells.shape[:-2], options["max_parts"])
    assert count.dtype == torch.int64
    size = cells.shape[-2:]
    found = parts.unpack().reshape(count.numel(), options["max_parts"], *size)
    for mask, got, number in zip(
        cells.reshape(count.numel(), *size), found, count.flatten().tolist(), strict=True
    ):
        expected = parts_by_scipy(mask, **options)
        assert number == len(expected)
        assert not got[number:].any()
        for one, other in zip(got, expected, strict=False):
            assert torch.equal(one, other)


@pytest.mark.parametrize("size", [1, 2, 3, 9, 32, 33, 64, 131])
@pytest.mark.parametrize("connectivity", [4, 8])
def test_a_spiral_is_one_part(size, connectivity):
    cells = spiral(size)
    for path in (cells, cells.flip(0), cells.flip(1), cells.T):
        found = parts_of(path, connectivity=connectivity)
        assert len(found) == bool(path.any())
        assert all(torch.equal(part, path) for part in found)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (5, 7), (4, 32), (6, 33), (45, 60)])
def test_corners_connect_a_checkerboard_only_with_8(height, width):
    cells = checkerboard(height, width)
    number = int(cells.sum())
    (whole,) = parts_of(cells) if height > 1 else (cells,)
    assert torch.equal(whole, cells)
    single = parts_of(cells, connectivity=4, max_parts=number + 3)
    assert len(single) == number
    # Equal areas: by the first cell.
    assert [int(part.flatten().nonzero()) for part in single] == cells.flatten().nonzero()[:, 0].tolist()


def test_full_empty_and_single_cells():
    assert parts_of(torch.zeros(9, 13, dtype=torch.bool)) == []
    full = torch.ones(9, 13, dtype=torch.bool)
    (whole,) = parts_of(full, connectivity=4)
    assert torch.equal(whole, full)
    for cell in (0, 12, 13, 31, 32, 116):
        one = torch.zeros(9 * 13, dtype=torch.bool)
        one[cell] = True
        (part,) = parts_of(one.view(9, 13))
        assert torch.equal(part.flatten(), one)
        assert parts_of(one.view(9, 13), min_area=2) == []


def test_the_end_of_a_row_does_not_touch_the_next_row():
    cells = torch.zeros(2, 40, dtype=torch.bool)
    cells[0, 39] = cells[1, 0] = True
    assert len(parts_of(cells)) == 2


def test_largest_first():
    cells = torch.zeros(3, 40, dtype=torch.bool)
    cells[0, 0], cells[0, 5:9], cells[2, 1:3], cells[2, 30:39] = True, True, True, True
    assert [int(part.sum()) for part in parts_of(cells)] == [9, 4, 2, 1]
    assert [int(part.sum()) for part in parts_of(cells, max_parts=3, min_area=3)] == [9, 4]
    assert [int(part.sum()) for part in parts_of(cells, max_parts=2)] == [9, 4]


@needs_extension
def test_bits_past_the_last_cell_are_zero_and_not_read():
    dirty = PackedMasks(torch.full((1, 2), -1, dtype=torch.int32), 5, 7)
    parts, count = connected_parts(dirty, max_parts=1)
    assert parts.words.tolist() == [[[-1, 0b111]]]
    assert count.tolist() == [1]


def test_any_number_of_threads(threads):
    cells = torch.rand(300, 20, 33, generator=torch.Generator().manual_seed(0)) < 0.5
    threads(1)
    parts, count = connected_parts(PackedMasks.pack(cells))
    threads(4)
    again, same = connected_parts(PackedMasks.pack(cells))
    assert torch.equal(parts.words, again.words)
    assert torch.equal(count, same)


MASKS = PackedMasks.pack(torch.ones(2, 3, 4, 5, dtype=torch.bool))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: connected_parts(MASKS.unpack()), TypeError, "masks: expected PackedMasks, got Tensor"),
        (lambda: connected_parts(MASKS, max_parts=0), ValueError, "max_parts: expected an int of at least 1"),
        (lambda: connected_parts(MASKS, max_parts=2.0), TypeError, "max_parts: expected an int, got float"),
        (lambda: connected_parts(MASKS, min_area=-1), ValueError, "min_area: expected an int of at least 0"),
        (lambda: connected_parts(MASKS, connectivity=6), ValueError, "connectivity: expected 4 or 8, got 6"),
        (lambda: connected_parts(MASKS, connectivity="8"), TypeError, "connectivity: expected an int"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


@needs_extension
def test_opcheck():
    torch.library.opcheck(torch.ops.sp_fast.connected_parts.default, (MASKS.words, 4, 5, 3, 1, 8))
