"""Masks at image size and their encoding."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask

from sp_fast.proposals.image_masks import encode, encoded_masks, image_masks


def test_saliency_is_resized_then_thresholded() -> None:
    saliency = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    masks = image_masks(saliency, (33, 64), 0.6)
    expected = F.interpolate(saliency[None], size=(33, 64), mode="bilinear")[0] >= 0.6
    assert masks.shape == (3, 33, 64)
    assert (masks != expected).float().mean() < 1e-3  # transposed axes round differently
    assert image_masks(saliency[:0], (33, 64), 0.6).shape == (0, 33, 64)


def test_encoding() -> None:
    masks = torch.zeros(2, 20, 30, dtype=torch.bool)
    masks[0, 3:9, 5:25] = True
    masks[0, 4, 6] = False
    masks[1, 19, 29] = True
    encoded = encode(masks)
    assert [one["area"] for one in encoded] == [119, 1]
    assert [one["bbox"] for one in encoded] == [[5, 3, 20, 6], [29, 19, 1, 1]]
    for one, mask in zip(encoded, masks, strict=True):
        decoded = coco_mask.decode({"size": [20, 30], "counts": one["counts"]})
        assert np.array_equal(decoded.astype(bool), mask.numpy())
    assert encode(masks[:0]) == []


def test_large_images_get_the_same_masks_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    saliency = torch.rand(5, 6, 8, generator=torch.Generator().manual_seed(0))
    thresholds = torch.tensor([0.6, 0.5, 0.4, 0.6, 0.3])
    whole = encoded_masks(saliency, (300, 401), thresholds)
    one_by_one = [
        image_masks(one[None], (300, 401), float(at)) for one, at in zip(saliency, thresholds, strict=True)
    ]
    assert whole == encode(torch.cat(one_by_one)) == encode(image_masks(saliency, (300, 401), thresholds))
    monkeypatch.setattr("sp_fast.proposals.image_masks._PIXELS_AT_ONCE", 2 * 300 * 401)
    assert encoded_masks(saliency, (300, 401), thresholds) == whole
    assert encoded_masks(saliency[:0], (300, 401), thresholds[:0]) == []
