"""Masks at image size, encoded, from saliency at the size of the feature map."""

from __future__ import annotations

from typing import Any

from pycocotools import mask as coco_mask
from torch import Tensor

from sp_fast.data.rle import rle_areas
from sp_fast.ops.mask_runs import compress_runs, mask_runs


def encoded_masks(saliency: Tensor, size: tuple[int, int], threshold: Tensor) -> list[dict[str, Any]]:
    """Encode `image_masks`, one threshold per mask, as COCO's run lengths, with areas and tight boxes.

    Only the run lengths leave the device of `saliency`.

    Returns:
        One dict per mask: `counts` (compressed, str), `area` in pixels, `bbox` (tight xywh in pixels).
    """
    counts = compress_runs(mask_runs(saliency, threshold, size))
    rles = [{"size": list(size), "counts": one} for one in counts]
    areas, boxes = rle_areas(rles), coco_mask.toBbox(rles)
    return [
        {"counts": one, "area": int(area), "bbox": [int(side) for side in box]}
        for one, area, box in zip(counts, areas, boxes, strict=True)
    ]
