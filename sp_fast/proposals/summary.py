"""Statistics of masks that need no annotations."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from sp_fast.data.rle import ious, rle_areas
from sp_fast.proposals.ranked import RankedMasks
from sp_fast.proposals.scores import Strips, count_strips

COMPARED = 100  # masks of an image whose overlap is measured; the cost grows with the square


@dataclass(frozen=True)
class Summary:
    """Number, sizes and overlap of masks. Values without masks are NaN.

    Attributes:
        images: number of images.
        masks: number of masks.
        masks_per_image: mean number of masks per image.
        fewest: lowest number of masks in an image.
        most: highest number of masks in an image.
        images_without: number of images without masks.
        area_quartiles: quartiles of a mask's area, as a share of its image.
        covered: share of an image that its masks cover together, averaged over images.
        overlap: highest IoU of a mask with another of its image, averaged over the first 100 masks of each
            image that has two or more. Near 1, most masks have a near-duplicate.
        strips: how many masks are strips along the border.
    """

    images: int
    masks: int
    masks_per_image: float
    fewest: int
    most: int
    images_without: int
    area_quartiles: tuple[float, float, float]
    covered: float
    overlap: float
    strips: Strips


def summarize(found: RankedMasks, names: Iterable[str]) -> Summary:
    """Summarize the masks of the images `names`, one or more."""
    counts, areas, covered, overlaps, images = [], [], [], [], []
    for name in names:
        masks = found.masks[name]
        pixels = found.images[name]["height"] * found.images[name]["width"]
        images.append(masks)
        counts.append(len(masks))
        areas.append(rle_areas(masks) / pixels)
        covered.append(float(coco_mask.area(coco_mask.merge(masks))) / pixels if masks else 0.0)
        overlaps.append(_overlaps(masks[:COMPARED]))
    area, overlap = np.concatenate(areas), np.concatenate(overlaps)
    low, middle, high = np.quantile(area, (0.25, 0.5, 0.75)).tolist() if len(area) else (np.nan,) * 3
    return Summary(
        images=len(counts),
        masks=sum(counts),
        masks_per_image=sum(counts) / len(counts),
        fewest=min(counts),
        most=max(counts),
        images_without=counts.count(0),
        area_quartiles=(low, middle, high),
        covered=sum(covered) / len(covered),
        overlap=float(overlap.mean()) if len(overlap) else np.nan,
        strips=count_strips(images),
    )


def _overlaps(masks: list) -> np.ndarray:
    """Highest IoU of each mask with another, [n]; empty for fewer than two."""
    if len(masks) < 2:
        return np.zeros(0)
    iou = ious(masks, masks)
    np.fill_diagonal(iou, 0)
    return iou.max(axis=1)
