"""Masks at image size from saliency at the size of the feature map."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor

from sp_fast.data.rle import rle_areas, run_lengths

_PIXELS_AT_ONCE = 2**24  # 64 MiB of float32


def image_masks(saliency: Tensor, size: tuple[int, int], threshold: float | Tensor) -> Tensor:
    """Resize saliency bilinearly to image size, then threshold it.

    Resizing the saliency rather than the mask gives smooth outlines that fit objects better.

    Args:
        saliency: floating point [K, h, w], the valid part of the map.
        size: height and width of the image in pixels.
        threshold: least saliency inside a mask, in [0, 1]; a number, or one per mask, [K].

    Returns:
        bool [K, H, W], stored column by column like COCO's run lengths.
    """
    height, width = size
    if not len(saliency):
        return torch.zeros(0, height, width, dtype=torch.bool, device=saliency.device)
    columns = saliency.float().transpose(1, 2)[None]  # [1, K, w, h]
    resized = F.interpolate(columns, size=(width, height), mode="bilinear", align_corners=False)[0]
    if isinstance(threshold, Tensor):
        threshold = threshold[:, None, None]
    return (resized >= threshold).transpose(1, 2)


def encoded_masks(saliency: Tensor, size: tuple[int, int], threshold: Tensor) -> list[dict[str, Any]]:
    """Encode `image_masks`, one threshold per mask; few masks of a large image are in memory at once."""
    at_once = max(1, _PIXELS_AT_ONCE // (size[0] * size[1]))
    parts = zip(saliency.split(at_once), threshold.split(at_once), strict=True) if len(saliency) else ()
    return [mask for part, limit in parts for mask in encode(image_masks(part, size, limit))]


def encode(masks: Tensor) -> list[dict[str, Any]]:
    """Encode masks, bool [K, H, W], as COCO's run lengths, with areas and tight boxes.

    Returns:
        One dict per mask: `counts` (compressed, str), `area` in pixels, `bbox` (tight xywh in pixels).
    """
    rles = run_lengths(masks.cpu().numpy())
    areas, boxes = rle_areas(rles), coco_mask.toBbox(rles)
    return [
        {"counts": rle["counts"], "area": int(area), "bbox": [int(side) for side in box]}
        for rle, area, box in zip(rles, areas, boxes, strict=True)
    ]
