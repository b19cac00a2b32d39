"""Random boxes as pseudo masks, a baseline for saliency masks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

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
    with replacing(out) as file:
        info = {"description": "random boxes", "count": count, "seed": seed}
        file.write(f'{{"info":{json.dumps(info)},"categories":[{{"id":1,"name":"object"}}],'.encode())
        file.write(f'"images":{json.dumps(records)},"annotations":['.encode())
        for number, record in enumerate(records):
            boxes = _annotations(record, count, seed, first=number * count + 1)
            file.write((("," if number else "") + ",\n".join(map(json.dumps, boxes))).encode())
        file.write(b"]}\n")
    return len(records), broken


def _annotations(image: dict[str, Any], count: int, seed: int, first: int) -> list[dict[str, Any]]:
    height, width = image["height"], image["width"]
    boxes = draw_boxes(height, width, count, np.random.default_rng((seed, image["id"])))
    masks = coco_mask.frPyObjects(boxes.astype(np.float64), height, width)
    return [
        {
            "id": first + i,
            "image_id": image["id"],
            "category_id": 1,
            "segmentation": {"size": [height, width], "counts": mask["counts"].decode()},
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        for i, (box, mask) in enumerate(zip(boxes.tolist(), masks, strict=True))
    ]
