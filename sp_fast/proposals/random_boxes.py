"""Random boxes as pseudo masks, a baseline for saliency masks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from sp_fast.data.coco import write_masks
from sp_fast.data.images import BrokenImageError, BrokenImages, image_size, list_images
from sp_fast.files import replacing

LEAST_SIDE = 8


def draw_boxes(height: int, width: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """Draw boxes whose opposite corners are uniformly random, in whole pixels.

    Args:
        height: height of the image in pixels.
        width: width of the image in pixels.
        count: number of boxes.
        generator: random number generator.

    Returns:
        int64 `[count, 4]`, xywh; a side is at least 8 pixels, or the image's side if that is smaller.
    """
    sides = np.array([width, height])
    first, second = generator.integers(0, sides + 1, (2, count, 2))
    least = np.minimum(LEAST_SIDE, sides)
    size = np.maximum(abs(first - second), least)
    corner = np.minimum(np.minimum(first, second), sides - size)
    return np.concatenate([corner, size], 1)


def write_random_boxes(
    images: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    count: int = 20,
    seed: int = 0,
    overwrite: bool = False,
) -> tuple[int, BrokenImages]:
    """Write random boxes for every image under `images` as COCO-format masks, for `source="import"`.

    The boxes of an image depend only on `seed` and its position in the sorted list. Unreadable images are
    skipped.

    Args:
        images: folder of images; sub-folders too.
        out: JSON file to write (atomic write).
        count: boxes per image.
        seed: random seed.
        overwrite: replace an existing `out`.

    Returns:
        The number of images with boxes, and the broken images.

    Raises:
        FileExistsError: `out` exists and `overwrite` is not set.
        ValueError: `count` is below 1, or more than 5 % of the images are broken.
    """
    out, folder = Path(out), Path(images)
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    if out.exists() and not overwrite:
        raise FileExistsError(f"out: {out} already exists; choose another file, or pass --overwrite")
    paths, broken = list_images(folder), BrokenImages()
    records: list[dict[str, Any]] = []
    for index, path in enumerate(paths):
        try:
            height, width = image_size(path)
        except BrokenImageError as error:
            broken.add(path, error.reason)
            continue
        name = path.relative_to(folder).as_posix()
        records.append({"id": index + 1, "file_name": name, "height": height, "width": width})
    broken.check(len(paths))
    boxes = (box for image in records for box in _boxes(image, count, seed))
    with replacing(out) as file:
        write_masks(
            file,
            {"description": "random boxes", "exif": "apply", "count": count, "seed": seed},
            records,
            boxes,
        )
    return len(records), broken


def _boxes(image: dict[str, Any], count: int, seed: int) -> Iterator[dict[str, Any]]:
    height, width = image["height"], image["width"]
    boxes = draw_boxes(height, width, count, np.random.default_rng((seed, image["id"])))
    masks = coco_mask.frPyObjects(boxes.astype(np.float64), height, width)
    for box, mask in zip(boxes.tolist(), masks, strict=True):
        yield {"image_id": image["id"], **mask, "bbox": box, "area": box[2] * box[3]}
