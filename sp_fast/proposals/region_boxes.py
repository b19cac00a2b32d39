"""Boxes of selective search as pseudo masks: the regions that DETReg is pre-trained on."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from sp_fast.data.images import BrokenImageError, BrokenImages, list_images, read_image
from sp_fast.data.prepared import check_outputs
from sp_fast.data.store import store_path, write_stored_masks
from sp_fast.files import replacing
from sp_fast.proposals.random_boxes import box_annotations

SIDE = 128  # images are resized to squares of this side
COUNT = 30


def check_opencv() -> None:
    """Raise ValueError, with what to install, unless OpenCV has selective search."""
    if find_spec("cv2") is None or not hasattr(import_module("cv2"), "ximgproc"):
        raise ValueError(
            "selective search is in OpenCV's contrib modules, which are not installed; the package "
            "opencv-contrib-python-headless has them and replaces the other packages of OpenCV: "
            "pip uninstall -y opencv-python opencv-python-headless; "
            "pip install opencv-contrib-python-headless"
        )


def selective_search(image: np.ndarray, count: int = COUNT, seed: int = 0) -> np.ndarray:
    """The first boxes of selective search, as DETReg computes them.

    As in amirbar/DETReg, datasets/selfdet.py (strategy "topk"): the image is resized to 128 x 128 pixels, and
    OpenCV's selective search runs in its fast mode; the boxes are scaled back, here also rounded to whole
    pixels. OpenCV orders the boxes by a rank with a random factor from the C library's `rand()`. DETReg
    does not seed it; here it is seeded, so with the same C library an image always gets the same boxes.

    Args:
        image: uint8 `[H, W, 3]`, RGB.
        count: largest number of boxes.
        seed: random seed, 0 to 2**32 - 1.

    Returns:
        int64 `[n, 4]`, xywh in pixels, n <= count; boxes have at least one pixel and lie in the image.
    """
    cv2: Any = import_module("cv2")
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(cv2.resize(image, (SIDE, SIDE)))
    search.switchToSelectiveSearchFast()
    ctypes.CDLL(None if os.name == "posix" else "msvcrt").srand(ctypes.c_uint(seed))
    found = np.asarray(search.process())[:count].reshape(-1, 4)
    sides = np.array([image.shape[1], image.shape[0]])
    scale = sides / SIDE
    first = np.minimum(np.rint(found[:, :2] * scale), sides - 1)
    last = np.maximum(np.rint((found[:, :2] + found[:, 2:]) * scale), first + 1)
    return np.concatenate([first, last - first], 1).astype(np.int64)


def write_region_boxes(
    images: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    count: int = COUNT,
    seed: int = 0,
    workers: int = 1,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[int, int, BrokenImages]:
    """Write boxes of `selective_search` for every image under `images` as COCO-format masks.

    For `source="import"`. The boxes of an image depend only on `seed` and its position in the sorted list.
    Unreadable images are skipped.

    Args:
        images: folder of images; sub-folders too.
        out: JSON file to write (atomic write); its store, see `MaskStore`, goes beside it.
        count: largest number of boxes per image.
        seed: random seed.
        workers: number of processes.
        overwrite: replace an existing `out`.
        progress: called with (images done, all images), at the start and after each image.

    Returns:
        The number of images with a record in `out`, the number of boxes, and the broken images.

    Raises:
        FileExistsError: `out` exists and `overwrite` is not set.
        ValueError: OpenCV lacks selective search, `count` or `workers` is below 1, or more than 5 % of the
            images are broken.
    """
    out, folder = Path(out), Path(images)
    for name, value in (("count", count), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    check_opencv()
    check_outputs([out, store_path(out)], overwrite=overwrite)
    paths, broken = list_images(folder), BrokenImages()
    records: list[dict[str, Any]] = []
    boxes: list[np.ndarray] = []
    if progress is not None:
        progress(0, len(paths))
    for number, found in enumerate(_searched(paths, count, seed, workers), start=1):
        if isinstance(found, BrokenImageError):
            broken.add(found.path, found.reason)
            broken.check(len(paths))
        else:
            (height, width), own = found
            name = paths[number - 1].relative_to(folder).as_posix()
            records.append({"id": number, "file_name": name, "height": height, "width": width})
            boxes.append(own)
        if progress is not None:
            progress(number, len(paths))
    info = {"description": "boxes of selective search", "exif": "apply", "count": count, "seed": seed}

    def masks() -> Iterator[dict[str, Any]]:
        for image, own in zip(records, boxes, strict=True):
            yield from box_annotations(image, own)

    with replacing(out) as file:
        total = write_stored_masks(file, out, info, lambda: records, masks)
    return len(records), total, broken


_Found = tuple[tuple[int, int], np.ndarray] | BrokenImageError


def _searched(paths: Sequence[Path], count: int, seed: int, workers: int) -> Iterator[_Found]:
    """Size and boxes of each image, in order, or why it cannot be read."""
    search = partial(_search, count=count, seed=seed)
    if workers == 1:
        yield from map(search, enumerate(paths))
        return
    # Processes and not threads, which would share one rand().
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(search, enumerate(paths), chunksize=8)


def _search(item: tuple[int, Path], count: int, seed: int) -> _Found:
    position, path = item
    try:
        image = read_image(path)
    except BrokenImageError as error:
        return error
    own_seed = int(np.random.SeedSequence((seed, position)).generate_state(1)[0])
    return image.shape[:2], selective_search(image, count, own_seed)
