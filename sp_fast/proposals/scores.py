"""How well proposals cover annotated objects."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

# COCO's limits of object sizes: area in pixels.
SIZES = {
    "all": (0.0, float("inf")),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, float("inf")),
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
class ProposalScores:
    """Scores of proposals against annotations.

    Attributes:
        images: number of images in both files; only these count.
        images_annotated: number of images in the annotations.
        masks_per_image: mean number of proposals per image.
        by_size: coverage of "all", "small", "medium" and "large" objects, by COCO's limits of the area.
    """

    images: int
    images_annotated: int
    masks_per_image: float
    by_size: dict[str, Coverage]


def score_proposals(proposals: str | os.PathLike[str], annotations: str | os.PathLike[str]) -> ProposalScores:
    """Score a file of proposals against a file of annotations, both COCO format, without crowds.

    Images are matched by `file_name`.

    Raises:
        FileNotFoundError, ValueError: see `load_coco`; ValueError also if no image is in both files.
    """
    from sp_fast.data.coco import load_coco
    from sp_fast.data.rle import best_ious, rle_areas

    found, wanted = load_coco(proposals), load_coco(annotations)
    names = {image["file_name"]: image["id"] for image in found["images"]}
    common = {
        image["id"]: names[image["file_name"]] for image in wanted["images"] if image["file_name"] in names
    }
    if not common:
        raise ValueError(
            f"no image is in both {proposals} and {annotations}: they are matched by file_name, such as "
            f"{_first_name(found)!r} and {_first_name(wanted)!r}"
        )
    masks, objects = _masks(found), _masks(wanted)
    iou = np.concatenate([best_ious(objects[image], masks[other]) for image, other in common.items()])
    area = np.concatenate([rle_areas(objects[image]) for image in common])
    return ProposalScores(
        images=len(common),
        images_annotated=len(wanted["images"]),
        masks_per_image=sum(len(masks[other]) for other in common.values()) / len(common),
        by_size={name: _coverage(iou[(area >= low) & (area < high)]) for name, (low, high) in SIZES.items()},
    )


def _first_name(coco: dict[str, Any]) -> str:
    return coco["images"][0]["file_name"] if coco["images"] else ""


def _masks(coco: dict[str, Any]) -> dict[int, list[dict[str, Any]]]:
    """Run lengths of all objects that are not crowds, by image id."""
    from sp_fast.data.rle import to_rle

    sizes = {image["id"]: (image["height"], image["width"]) for image in coco["images"]}
    masks: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for annotation in coco["annotations"]:
        if not annotation.get("iscrowd", 0):
            image = annotation["image_id"]
            masks[image].append(to_rle(annotation["segmentation"], *sizes[image]))
    return masks


def _coverage(iou: np.ndarray) -> Coverage:
    if not len(iou):
        return Coverage(0, float("nan"), float("nan"))
    return Coverage(len(iou), float(iou.mean()), float((iou > 0.5).mean()))
