"""Encoded masks at image size."""

import numpy as np
import torch
from pycocotools import mask as coco_mask

from sp_fast.ops.mask_runs import image_masks
from sp_fast.proposals.image_masks import encoded_masks


def test_masks_areas_and_boxes() -> None:
    saliency = torch.rand(5, 6, 8, generator=torch.Generator().manual_seed(0))
    thresholds = torch.tensor([0.6, 0.5, 0.4, 2.0, 0.3])
    size = (300, 401)
    encoded = encoded_masks(saliency, size, thresholds)
    for one, mask in zip(encoded, image_masks(saliency, size, thresholds).numpy(), strict=True):
        decoded = coco_mask.decode({"size": list(size), "counts": one["counts"]}).astype(bool)
        assert (decoded != mask).mean() < 1e-4  # rounding decides where the saliency equals the threshold
        assert one["area"] == decoded.sum()
        rows, columns = np.flatnonzero(decoded.any(1)), np.flatnonzero(decoded.any(0))
        expected = [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1] if len(rows) else [0] * 4
        assert one["bbox"] == expected
    assert encoded_masks(saliency[:0], size, thresholds[:0]) == []
