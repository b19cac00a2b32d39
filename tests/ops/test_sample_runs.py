"""sample_runs against pycocotools, the reference and damaged strings."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from sp_fast.ops.sample_runs import _reference, sample_runs
from tests.ops.op_cases import SEEDS, generator, needs_extension, poisoned_memory, scattered

LINES = st.integers(0, 70)


def joined(strings: list[bytes]) -> tuple[torch.Tensor, torch.Tensor]:
    """The text and ends of some strings."""
    text = torch.tensor([*b"".join(strings)], dtype=torch.uint8)
    return text, torch.tensor([len(one) for one in strings], dtype=torch.int64).cumsum(0)


def drawn(masks: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """The definition: cell (c, r) is that of row rows[r] and column columns[c]."""
    chosen = torch.nn.functional.pad(masks, (0, 1, 0, 1))[:, rows][:, :, columns]
    return chosen.transpose(1, 2)


@st.composite
def encoded_masks(draw) -> tuple:
    """Masks of noise or of a few long runs, their strings, and rows and columns in any order."""
    random = generator(draw(SEEDS))
    count, height, width = draw(st.integers(0, 4)), draw(LINES), draw(LINES)
    masks = torch.rand(count, height, width, generator=random) < draw(st.sampled_from([0.0, 0.02, 0.5, 1.0]))
    if draw(st.booleans()):
        masks = masks.cummax(1).values if masks.numel() else masks
    strings = [coco_mask.encode(np.asfortranarray(mask))["counts"] for mask in masks.to(torch.uint8).numpy()]
    chosen = [
        torch.randint(-1, side, (draw(LINES),), generator=random) if side else torch.full((draw(LINES),), -1)
        for side in (height, width)
    ]
    return masks, strings, *chosen


@given(encoded_masks())
def test_same_as_pycocotools(drawn_masks):
    masks, strings, rows, columns = drawn_masks
    text, ends = joined(strings)
    expected = drawn(masks, rows, columns)
    for lines in ((rows, columns), (scattered(rows), scattered(columns))):
        with poisoned_memory():
            found = sample_runs(text, ends, *masks.shape[1:], *lines)
        assert torch.equal(found.unpack(), expected)
    reference = _reference(text, ends, *masks.shape[1:], rows, columns)
    assert torch.equal(reference, found.words)


@pytest.mark.parametrize(
    "function", [pytest.param(sample_runs, marks=needs_extension), _reference], ids=["op", "reference"]
)
@pytest.mark.parametrize("text", [b"", b"9", b";", b"R0", b"\x2f4", b"\xff", b"P" * 20, b"9N4", b"4114M10"])
def test_damaged_strings(function, text):
    line = torch.zeros(1, dtype=torch.int64)
    good = coco_mask.encode(np.ones((2, 5), np.uint8, order="F"))["counts"]
    with pytest.raises(ValueError, match=r"text: mask 1 is damaged: .* of 2 x 5 pixels"):
        function(*joined([good, text]), 2, 5, line, line)


def test_names_the_wrong_argument():
    text, ends = joined([b"04"])
    line = torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"rows: expected values in \[-1, 1\], got 2"):
        sample_runs(text, ends, 2, 2, line + 2, line)
    with pytest.raises(ValueError, match=r"ends: expected values in \[0, 2\], got 3"):
        sample_runs(text, ends + 1, 2, 2, line, line)
    with pytest.raises(TypeError, match="columns: expected dtype int64"):
        sample_runs(text, ends, 2, 2, line, line.int())
    with pytest.raises(TypeError, match="text: expected dtype uint8"):
        sample_runs(text.int(), ends, 2, 2, line, line)
    with pytest.raises(ValueError, match="text: expected device cpu, got meta"):
        sample_runs(text.to("meta"), ends, 2, 2, line, line)


@needs_extension
def test_compiled_op_checks_too():
    text, ends = joined([b"04"])
    line, op = torch.zeros(1, dtype=torch.int64), torch.ops.sp_fast.sample_runs
    for bad in ((text, ends + 7, 2, 2, line, line), (text, ends, 2, 2, line + 5, line)):
        with pytest.raises(ValueError, match="expected values in"):
            op(*bad)
    torch.library.opcheck(op, (text, ends, 2, 2, line, line))
