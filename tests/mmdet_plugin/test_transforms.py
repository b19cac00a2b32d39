"""Rotation of more masks than OpenCV takes at once."""

import numpy as np
import pytest

pytest.importorskip("mmdet")

import sp_fast.models  # noqa: F401

# isort: split
from mmdet.datasets.transforms import Rotate
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks

from sp_fast.mmdet_plugin.transforms import RotateInstances


def rotated(transform, masks):
    """The masks after a rotation by 9 degrees."""
    results = {
        "img": np.zeros((*masks.shape[1:], 3), np.uint8),
        "img_shape": masks.shape[1:],
        "gt_masks": BitmapMasks(masks, *masks.shape[1:]),
        "gt_bboxes": HorizontalBoxes(np.zeros((len(masks), 4), np.float32)),
    }
    return transform(prob=1.0, level=3, reversal_prob=0.0)(results)["gt_masks"].masks


@pytest.mark.parametrize("count", [0, 1, 6, 129, 513])
def test_any_number_of_masks(count):
    masks = np.zeros((count, 24, 32), np.uint8)
    for number, mask in enumerate(masks):
        mask[number % 12 : number % 12 + 8, number % 23 : number % 23 + 8] = 1
    found = rotated(RotateInstances, masks)
    assert found.shape == masks.shape
    assert found.dtype == masks.dtype
    alone = [rotated(Rotate, masks[number : number + 1])[0] for number in range(count)]
    # OpenCV rounds differently for other numbers of channels.
    assert all((one != other).sum() <= 6 for one, other in zip(found, alone, strict=True))
