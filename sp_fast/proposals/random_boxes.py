"""Random boxes as pseudo masks, a baseline for saliency masks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sp_fast.data.images import BrokenImageError, BrokenImages, image_size, list_images
from sp_fast.data.prepared import check_outputs
from sp_fast.data.rle import box_masks
from sp_fast.data.store import store_path, write_stored_masks
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


def draw_patches(height: int, width: int, count: int, generator: np.random.Generator) -> np.ndarray:
    """Draw boxes by the rule of UP-DETR's random query patches.

    The rule is `get_random_patch_from_img` in dddzg/up-detr, datasets/selfdet.py: each side is uniform from 8
    pixels to the image's side minus 8, both included, then the corner is uniform from 0 to the remaining
    pixels, excluded. UP-DETR cannot draw patches of images below 16 pixels; here, the sides of such images'
    boxes are the smaller of 8 pixels and the image's side.

    Args:
        height: height of the image in pixels.
        width: width of the image in pixels.
        count: number of boxes.
        generator: random number generator.

    Returns:
        int64 `[count, 4]`, xywh.
    """
    sides = np.array([width, height])
    least = np.minimum(LEAST_SIDE, sides)
    size = generator.integers(least, np.maximum(sides - LEAST_SIDE, least) + 1, (count, 2))
    corner = generator.integers(0, np.maximum(sides - size, 1))
    return np.concatenate([corner, size], 1)


# How boxes are drawn, and the default number per image.
KINDS = {"uniform": (draw_boxes, 20), "up-detr": (draw_patches, 10)}


def write_random_boxes(
    images: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    kind: str = "uniform",
    count: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> tuple[int, BrokenImages]:
    """Write random boxes for every image under `images` as COCO-format masks, for `source="import"`.

    The boxes of an image depend only on `seed` and its position in the sorted list. Unreadable images are
    skipped.

    Args:
        images: folder of images; sub-folders too.
        out: JSON file to write (atomic write); its store, see `MaskStore`, goes beside it.
        kind: "uniform", see `draw_boxes`, or "up-detr", see `draw_patches`.
        count: boxes per image. None: 20, or 10 for "up-detr".
        seed: random seed.
        overwrite: replace an existing `out`.

    Returns:
        The number of images with boxes, and the broken images.

    Raises:
        FileExistsError: `out` exists and `overwrite` is not set.
        ValueError: another `kind`, `count` is below 1, or more than 5 % of the images are broken.
    """
    out, folder = Path(out), Path(images)
    if kind not in KINDS:
        raise ValueError(f"kind: expected {' or '.join(map(repr, KINDS))}, got {kind!r}")
    draw, usual = KINDS[kind]
    count = usual if count is None else count
    if count < 1:
        raise ValueError(f"count: expected at least 1, got {count}")
    check_outputs([out, store_path(out)], overwrite=overwrite)
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
    info = {"description": "random boxes", "exif": "apply", "kind": kind, "count": count, "seed": seed}

    def masks() -> Iterator[dict[str, Any]]:
        for image in records:
            yield from box_annotations(image, draw(*_size(image), count, _generator(image, seed)))

    with replacing(out) as file:
        write_stored_masks(file, out, info, lambda: records, masks)
    return len(records), broken


def box_annotations(image: dict[str, Any], boxes: np.ndarray) -> Iterator[dict[str, Any]]:
    """Boxes, int [n, 4], xywh in pixels inside an image, as masks for `write_masks`."""
    for box, mask in zip(boxes.tolist(), box_masks(boxes, *_size(image)), strict=True):
        rle = {"size": mask["size"], "counts": mask["counts"].decode("ascii")}
        yield {"image_id": image["id"], **rle, "bbox": box, "area": box[2] * box[3]}


def _size(image: dict[str, Any]) -> tuple[int, int]:
    return image["height"], image["width"]


def _generator(image: dict[str, Any], seed: int) -> np.random.Generator:
    return np.random.default_rng((seed, image["id"]))
