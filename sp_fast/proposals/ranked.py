"""Masks by image, best first, from files in COCO format."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sp_fast.data.coco import load_coco
from sp_fast.data.rle import to_rle
from sp_fast.data.structure import is_number


@dataclass(frozen=True)
class RankedMasks:
    """The masks of a file, without crowds.

    Attributes:
        images: file name of each image -> its entry in the file.
        masks: file name of each image -> compressed run lengths of its masks, those with the highest score
            first; equal scores, and masks without one, in the order of the file.
        exif: whether the masks fit images with their EXIF orientation applied; see `read_labelled`.
    """

    images: dict[str, dict[str, Any]]
    masks: dict[str, list[dict[str, Any]]]
    exif: str = "auto"


def read_ranked(path: str | os.PathLike[str]) -> RankedMasks:
    """Reads a COCO-format file of proposals or annotations.

    Raises:
        FileNotFoundError, ValueError: see `load_coco`.
    """
    coco = load_coco(path, class_agnostic=True)
    by_id = {image["id"]: image for image in coco["images"]}
    masks: dict[str, list[dict[str, Any]]] = {image["file_name"]: [] for image in coco["images"]}
    for one in sorted(coco["annotations"], key=_score, reverse=True):
        if not one["iscrowd"]:
            image = by_id[one["image_id"]]
            rle = to_rle(one["segmentation"], image["height"], image["width"])
            masks[image["file_name"]].append(rle)
    info = coco.get("info")
    exif = info.get("exif", "auto") if isinstance(info, dict) else "auto"
    return RankedMasks({image["file_name"]: image for image in coco["images"]}, masks, exif)


def common_names(files: Mapping[str, RankedMasks]) -> list[str]:
    """File names of the images that all files have, in the order of the last; the keys name the files.

    Raises:
        ValueError: no image is in all files, or one has two sizes.
    """
    *others, last = files.values()
    names = [name for name in last.images if all(name in one.images for one in others)]
    if not names:
        raise ValueError(
            f"no image is in {'both ' if len(files) == 2 else ''}{' and '.join(files)}: they are matched by "
            f"file_name, such as {' and '.join(repr(next(iter(one.images), '')) for one in files.values())}"
        )
    for name in names:
        sizes = {key: (one.images[name]["height"], one.images[name]["width"]) for key, one in files.items()}
        if len(set(sizes.values())) > 1:
            got = " and ".join(f"{size} in {key}" for key, size in sizes.items())
            raise ValueError(f"{name}: expected one size in all files, got {got} (height, width)")
    return names


def _score(annotation: dict[str, Any]) -> float:
    score = annotation.get("score", 0.0)
    return score if is_number(score) else 0.0
