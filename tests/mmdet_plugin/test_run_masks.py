"""Masks kept as run lengths, and as bits, against mmdet's bitmaps."""

import pickle

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")

import sp_fast.models  # noqa: F401

# isort: split
import mmcv
from hypothesis import given
from hypothesis import strategies as st
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from pycocotools import mask as coco_mask

from sp_fast.knet.targets import quarter_size
from sp_fast.mmdet_plugin.run_masks import RunMasks, packed_bitmaps

SIDES = st.integers(1, 40)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("resize"), SIDES, SIDES),
        st.tuples(st.just("flip"), st.sampled_from(["horizontal", "vertical", "diagonal"])),
        st.tuples(st.just("crop"), SIDES, SIDES),
        st.tuples(st.just("pad"), st.integers(0, 9), st.integers(0, 9)),
        st.tuples(st.just("expand"), st.integers(0, 9), st.integers(0, 9)),
        st.tuples(st.just("rescale"), SIDES, SIDES),
        st.tuples(st.just("index"), st.integers(0, 3)),
    ),
    max_size=4,
)


def bitmaps(seed: int, count: int, height: int, width: int) -> BitmapMasks:
    """Random masks, some of them noise and some of them rectangles."""
    rng = np.random.default_rng(seed)
    masks = (rng.random((count, height, width)) < rng.random((count, 1, 1))).astype(np.uint8)
    for mask in masks[::2]:
        top, left = rng.integers(height), rng.integers(width)
        mask[:] = 0
        mask[top : top + rng.integers(1, height + 1), left : left + rng.integers(width + 1)] = 1
    return BitmapMasks(masks, height, width)


def as_runs(masks: BitmapMasks) -> RunMasks:
    """The same masks, encoded."""
    encoded = [coco_mask.encode(np.asfortranarray(mask)) for mask in masks.masks]
    return RunMasks([one["counts"] for one in encoded], masks.height, masks.width)


def applied(masks: BitmapMasks, step: tuple) -> BitmapMasks:
    """The masks after a step of a pipeline."""
    name, *numbers = step
    if name == "resize":
        return masks.resize(tuple(numbers))
    if name == "rescale":
        empty = 0 in mmcv.rescale_size((masks.width, masks.height), tuple(numbers))
        return masks if empty else masks.rescale(tuple(numbers))  # nobody can resize to no pixels
    if name == "flip":
        return masks.flip(*numbers)
    if name == "pad":
        return masks.pad((masks.height + numbers[0], masks.width + numbers[1]))
    if name == "expand":
        return masks.expand(masks.height + numbers[0], masks.width + numbers[1], numbers[0] // 2, numbers[1])
    if name == "crop":
        y, x = (numbers[0] % masks.height, numbers[1] % masks.width)
        return masks.crop(np.array([x, y, x + numbers[0], y + numbers[1]]))
    return masks[np.arange(len(masks))[numbers[0] :]]


def transformed(seed, count, height, width, steps) -> tuple[RunMasks, BitmapMasks]:
    """Masks as run lengths and as bitmaps after the same steps."""
    expected = bitmaps(seed, count, height, width)
    found = as_runs(expected)
    for step in steps:
        found, expected = applied(found, step), applied(expected, step)
    return found, expected


@given(st.integers(0, 999), st.integers(0, 4), SIDES, SIDES, STEPS)
def test_same_as_bitmaps(seed, count, height, width, steps):
    found, expected = transformed(seed, count, height, width, steps)
    assert isinstance(found, RunMasks)
    assert (len(found), found.height, found.width) == (len(expected), expected.height, expected.width)
    np.testing.assert_array_equal(found.masks, expected.masks)
    np.testing.assert_array_equal(found.areas, expected.areas)
    boxes = found.get_bboxes(HorizontalBoxes)
    assert torch.equal(boxes.tensor, expected.get_bboxes(HorizontalBoxes).tensor)
    assert boxes.tensor.dtype == torch.float32
    again = pickle.loads(pickle.dumps(found))
    np.testing.assert_array_equal(again.masks, expected.masks)


@given(st.integers(0, 999), st.integers(0, 4), SIDES, SIDES, STEPS)
def test_bits_are_those_of_the_bitmaps(seed, count, height, width, steps):
    runs, expected = transformed(seed, count, height, width, steps)
    for masks in (runs, expected):
        full = packed_bitmaps(masks, quarter=False)
        np.testing.assert_array_equal(full.masks, expected.masks)
        assert torch.equal(full.to_tensor(torch.bool, "cpu"), expected.to_tensor(torch.bool, "cpu"))
        np.testing.assert_array_equal(full.areas, expected.areas)
        quarter = packed_bitmaps(masks, quarter=True)
        for padded in (0, 5):
            h, w = expected.height + padded, expected.width + padded
            wanted = quarter_size(expected.masks, -(-h // 4) * 4, -(-w // 4) * 4)
            np.testing.assert_array_equal(quarter.pad((h, w)).cells().numpy(), wanted)
            np.testing.assert_array_equal(full.pad((h, w)).masks, expected.pad((h, w)).masks)


@given(st.integers(0, 999), SIDES, SIDES)
def test_crops_are_those_of_the_bitmaps(seed, height, width):
    expected = bitmaps(seed, 4, height, width)
    found = packed_bitmaps(as_runs(expected), quarter=False)
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.random((5, 2, 2)), 1) * (width, height)
    boxes, index = corners.reshape(5, 4).astype(np.float32), rng.integers(0, 4, 5)
    wanted = expected.crop_and_resize(boxes, (7, 5), index, binarize=False).masks
    np.testing.assert_allclose(
        found.crop_and_resize(boxes, (7, 5), index, binarize=False).masks, wanted, atol=1e-6
    )
    assert found.crop_and_resize(boxes[:0], (7, 5), index[:0]).masks.shape == (0, 7, 5)


def test_masks_at_stride_4_have_no_pixels():
    quarter = packed_bitmaps(bitmaps(0, 2, 9, 9), quarter=True)
    with pytest.raises(TypeError, match="expected masks of full size"):
        quarter.to_ndarray()
    assert torch.equal(quarter[[1]].cells(), quarter.cells()[1:])
