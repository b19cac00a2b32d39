"""Run lengths of masks at image size against the definition, pycocotools and hand-made cases."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from torch import Tensor

from sp_fast.ops import mask_runs as module
from sp_fast.ops.mask_runs import MaskRuns, compress_runs, image_masks, mask_runs
from tests.ops.op_cases import needs_extension

SIDE = st.integers(1, 9)
SIZE = st.integers(1, 70)


def drawn_maps(rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise, and a map of 0 and 1; thresholds within the values, one above and one below all of them."""
    generator = torch.Generator().manual_seed(seed)
    saliency = torch.rand(4, rows, columns, generator=generator)
    saliency[1] = saliency[1].round()
    return saliency, torch.tensor([0.5, 0.4, 2.0, -1.0])


def pixels(runs: MaskRuns, height: int, width: int) -> Tensor:
    masks = []
    for lengths in runs.lengths.split(runs.number.tolist()):
        inside = torch.arange(len(lengths)) % 2 == 1
        masks.append(inside.repeat_interleave(lengths).reshape(width, height).T)
    return torch.stack(masks)


def near_threshold(saliency: Tensor, size: tuple[int, int], threshold: Tensor) -> Tensor:
    resized = F.interpolate(saliency[None].double(), size=size, mode="bilinear", align_corners=False)[0]
    return (resized - threshold[:, None, None]).abs() < 1e-5


@given(rows=SIDE, columns=SIDE, height=SIZE, width=SIZE, seed=st.integers(0, 99))
def test_same_as_the_definition_but_for_rounding(rows, columns, height, width, seed):
    saliency, threshold = drawn_maps(rows, columns, seed)
    runs = mask_runs(saliency, threshold, (height, width))
    assert runs.lengths.dtype == torch.int32
    expected = image_masks(saliency, (height, width), threshold)
    close = near_threshold(saliency, (height, width), threshold)
    assert ((pixels(runs, height, width) == expected) | close).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_strided_maps_of_any_dtype(dtype):
    saliency, threshold = drawn_maps(5, 7, 0)
    saliency = saliency.to(dtype)
    runs = mask_runs(saliency, threshold, (50, 31))
    strided = torch.full((4, 9, 14), torch.nan, dtype=dtype)[:, 2:7, ::2]
    strided.copy_(saliency)
    for got, expected in zip(mask_runs(strided, threshold, (50, 31)), runs, strict=True):
        assert torch.equal(got, expected)


def test_resized_in_parts(monkeypatch):
    saliency, threshold = drawn_maps(5, 7, 0)
    whole = module._runs_reference(saliency, threshold, 50, 31)
    monkeypatch.setattr(module, "_PIXELS_AT_ONCE", 2 * 50 * 31)
    for got, expected in zip(module._runs_reference(saliency, threshold, 50, 31), whole, strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize(
    "function", [mask_runs, lambda s, t, size: MaskRuns(*module._runs_reference(s, t, *size))]
)
def test_first_run_is_outside(function):
    saliency = torch.tensor([[[1.0], [0.0]], [[0.0], [1.0]]])
    runs = function(saliency, torch.full((2,), 0.5), (2, 3))
    assert runs.lengths.tolist() == [0, 1, 1, 1, 1, 1, 1, *[1] * 6]
    assert runs.number.tolist() == [7, 6]


@given(st.lists(st.lists(st.integers(0, 5000), min_size=1, max_size=9), max_size=4))
def test_compressed_as_pycocotools_does(masks):
    lengths = torch.tensor([run for runs in masks for run in runs], dtype=torch.int32)
    number = torch.tensor([len(runs) for runs in masks], dtype=torch.int64)
    expected = [
        coco_mask.frPyObjects({"counts": runs, "size": [sum(runs), 1]}, sum(runs), 1)["counts"].decode()
        for runs in masks
    ]
    assert compress_runs(MaskRuns(lengths, number)) == expected
    text, characters = module._compress_reference(lengths, number)
    texts = [bytes(one.tolist()).decode() for one in text.split(characters.tolist())]
    assert texts == expected


def test_no_masks():
    runs = mask_runs(torch.empty(0, 3, 4), torch.empty(0), (20, 30))
    assert runs.lengths.shape == runs.number.shape == (0,)
    assert compress_runs(runs) == []


@needs_extension
def test_op_is_registered_well():
    saliency, threshold = drawn_maps(5, 7, 0)
    torch.library.opcheck(torch.ops.sp_fast.mask_runs.default, (saliency, threshold, 50, 31))
    runs = mask_runs(saliency, threshold, (50, 31))
    torch.library.opcheck(torch.ops.sp_fast.compress_runs.default, tuple(runs))


@needs_extension
def test_wrong_counts_are_refused():
    with pytest.raises(ValueError, match="number: expected a sum of 2, got 3"):
        torch.ops.sp_fast.compress_runs(torch.tensor([1, 2]), torch.tensor([1, 2]))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.zeros(2, 3), torch.zeros(2), (4, 5)), ValueError, "saliency"),
        ((torch.zeros(2, 3, 4), torch.zeros(3), (4, 5)), ValueError, "threshold"),
        ((torch.zeros(2, 3, 4), torch.zeros(2).double(), (4, 5)), TypeError, "threshold"),
        ((torch.zeros(2, 3, 4), torch.zeros(2), (0, 5)), ValueError, "size: height"),
        ((torch.zeros(2, 3, 0), torch.zeros(2), (4, 5)), ValueError, "saliency: width"),
        ((torch.zeros(2, 3, 4), torch.zeros(2), (2**16, 2**15)), ValueError, "size: expected at most 2"),
    ],
)
def test_wrong_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        mask_runs(*arguments)
