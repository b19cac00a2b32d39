"""How well proposals cover annotated objects."""

from __future__ import annotations

import os
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

# COCO's bounds of object sizes, in pixels of area.
SIZES = {
    "all": (0.0, float("inf")),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, float("inf")),
}


@dataclass(frozen=True)
class Coverage:
    """Of the objects of one size.

    Attributes:
        objects: how many there are.
        mean_best_iou: mean over objects of the IoU with their image's best proposal; NaN if there are none.
        above_half: share of the objects whose best IoU is above 0.5; NaN if there are none.
    """

    objects: int
    mean_best_iou: float
    above_half: float


@dataclass(frozen=True)
class ProposalScores:
    """Scores of proposals against annotations.

    Attributes:
        images: images in both files; only these count.
        images_annotated: images in the annotations.
        masks_per_image: mean number of proposals of an image.
        by_size: "all", "small", "medium" and "large" by COCO's bounds (32 and 96 pixels squared) of the area.
    """

    images: int
    images_annotated: int
    masks_per_image: float
    by_size: dict[str, Coverage]


def score_proposals(proposals: str | os.PathLike[str], annotations: str | os.PathLike[str]) -> ProposalScores:
    """Compare a file of proposals with a file of annotations, both COCO format; crowds do not count.

    Images are matched by `file_name`.

    Raises:
        FileNotFoundError, ValueError: see `sp_fast.data.coco.load_coco`; no image in both files.
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
    """Run lengths of all objects that are not crowds, by image."""
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
