"""How well proposals cover annotated objects."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf, nan
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from sp_fast.data.rle import best_ious, rle_areas
from sp_fast.proposals.ranked import common_names, read_ranked

# COCO's limits of object sizes: area in pixels.
SIZES = {
    "all": (0.0, inf),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, inf),
}


@dataclass(frozen=True)
class Coverage:
    """How well proposals cover the objects of one size.

    Attributes:
        objects: number of objects.
        mean_best_iou: best IoU with any proposal of the image, averaged over objects; NaN if there are none.
        above_half: share of the objects whose best IoU is above 0.5; NaN if there are none.
    """

    objects: int
    mean_best_iou: float
    above_half: float


@dataclass(frozen=True)
class Strips:
    """How many proposals are thin strips along the border of their image, see `border_strips`.

    Attributes:
        masks: number of proposals that are strips.
        masks_share: their share of the proposals; NaN if there are none.
        best: number of images whose best-ranked proposal is a strip.
        best_share: their share of the images that have proposals; NaN if none has.
    """

    masks: int
    masks_share: float
    best: int
    best_share: float


@dataclass(frozen=True)
class ProposalScores:
    """Scores of proposals against annotations.

    Attributes:
        images: number of images in both files; only these count.
        images_annotated: number of images in the annotations.
        masks_per_image: mean number of proposals per image.
        by_size: coverage of "all", "small", "medium" and "large" objects, by COCO's limits of the area.
        strips: how many proposals are strips along the border.
    """

    images: int
    images_annotated: int
    masks_per_image: float
    by_size: dict[str, Coverage]
    strips: Strips


def score_proposals(proposals: str | os.PathLike[str], annotations: str | os.PathLike[str]) -> ProposalScores:
    """Score a file of proposals against a file of annotations, both COCO format, without crowds.

    Images are matched by `file_name`.

    Raises:
        FileNotFoundError, ValueError: see `load_coco` and `common_names`.
    """
    found, wanted = read_ranked(proposals), read_ranked(annotations)
    names = common_names({str(proposals): found, str(annotations): wanted})
    masks = [found.masks[name] for name in names]
    objects = [wanted.masks[name] for name in names]
    return ProposalScores(
        images=len(names),
        images_annotated=len(wanted.images),
        masks_per_image=sum(map(len, masks)) / len(names),
        by_size=coverage_by_size(
            np.concatenate([best_ious(*pair) for pair in zip(objects, masks, strict=True)]),
            np.concatenate([rle_areas(one) for one in objects]),
        ),
        strips=count_strips(masks),
    )


def coverage_by_size(best: np.ndarray, areas: np.ndarray) -> dict[str, Coverage]:
    """Coverage of all, small, medium and large objects from the best IoU and the area of each object."""
    return {name: _coverage(best[(areas >= low) & (areas < high)]) for name, (low, high) in SIZES.items()}


def border_strips(boxes: np.ndarray, height: int, width: int) -> np.ndarray:
    """Find thin strips along the border of the image: bool [n].

    A strip touches a border, is at most 20 % of the image thick, and at least 50 % of that border long.

    Args:
        boxes: tight boxes of masks [n, 4], xywh in pixels.
        height: height of the image in pixels.
        width: width of the image in pixels.
    """
    x, y, w, h = np.asarray(boxes).reshape(-1, 4).T
    upright = ((x == 0) | (x + w == width)) & (5 * w <= width) & (2 * h >= height)
    level = ((y == 0) | (y + h == height)) & (5 * h <= height) & (2 * w >= width)
    return upright | level


def count_strips(images: Iterable[Sequence[dict[str, Any]]]) -> Strips:
    """Count the strips among the masks of each image, best first."""
    found = [border_strips(coco_mask.toBbox(masks), *masks[0]["size"]) for masks in images if masks]
    masks = int(sum(one.sum() for one in found))
    best = int(sum(one[0] for one in found))
    total = sum(map(len, found))
    return Strips(masks, masks / total if total else nan, best, best / len(found) if found else nan)


def _coverage(iou: np.ndarray) -> Coverage:
    if not len(iou):
        return Coverage(0, nan, nan)
    return Coverage(len(iou), float(iou.mean()), float((iou > 0.5).mean()))
