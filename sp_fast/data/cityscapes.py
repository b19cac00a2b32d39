"""Cityscapes' instance labels as COCO-format annotations, as mmdet's converter makes them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from sp_fast.data.images import BoundedFile, BrokenImageError, image_size
from sp_fast.data.prepared import listed

SPLITS = ("train", "val", "test")
# The classes with instances that are evaluated, by label id (mcordts/cityscapesScripts, labels.py).
CLASSES = {
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
_LAST_LABEL = 33
_IMAGE, _IDS, _LABELS = "leftImg8bit", "gtFine_instanceIds", "gtFine_labelIds"


def file_name(split: str) -> str:
    """The usual name of a split's annotation file; ValueError for another split."""
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    return f"instancesonly_filtered_gtFine_{split}.json"


def convert_cityscapes(
    root: str | os.PathLike[str], split: str, progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """COCO-format annotations of a split of Cityscapes.

    A pixel value of at least 1,000 in `gtFine/SPLIT/CITY/*_gtFine_instanceIds.png` is an instance of the
    class value // 1000, and a value from 24 to 33 a group, which becomes a crowd. Only the eight classes that
    are evaluated are kept, with Cityscapes' ids. File names are relative to `leftImg8bit/SPLIT`. Ids count
    from 1; mmdet's converter begins with 0, which pycocotools' evaluation takes for "not matched".

    Args:
        root: folder with `leftImg8bit` and `gtFine`.
        split: "train", "val" or "test"; the test images may come without labels.
        progress: called with (images done, total images).

    Raises:
        FileNotFoundError: no images, or images without labels.
        BrokenImageError: a file that cannot be read.
        ValueError: a label file is not 16-bit, has another size than its image, or has an unknown value.
    """
    folder, labels = Path(root, _IMAGE, split), Path(root, "gtFine", split)
    paths = sorted(folder.glob(f"*/*_{_IMAGE}.png"))
    if not paths:
        raise FileNotFoundError(f"{folder}: no images named CITY/*_{_IMAGE}.png")
    places = [labels / path.parent.name / path.name.replace(_IMAGE, _IDS) for path in paths]
    missing = [str(place.relative_to(root)) for place in places if not place.is_file()]
    if missing and split != "test":
        raise FileNotFoundError(f"{root}: {len(missing)} label files are missing: {listed(missing)}")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (path, place) in enumerate(zip(paths, places, strict=True), start=1):
        height, width = image_size(path, exif="ignore")
        name = f"{path.parent.name}/{path.name}"
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        if place.is_file():
            images[-1]["segm_file"] = name.replace(_IMAGE, _LABELS)
            for one in _objects(place, (height, width)):
                annotations.append({"id": len(annotations) + 1, "image_id": number, **one})
        if progress is not None:
            progress(number, len(paths))
    return {
        "info": {"description": f"Cityscapes gtFine {split}", "exif": "ignore"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": label, "name": name} for label, name in CLASSES.items()],
    }


def _objects(path: Path, size: tuple[int, int]) -> list[dict[str, Any]]:
    ids = _read_ids(path, size)
    objects = []
    for value in np.unique(ids[ids >= min(CLASSES)]).tolist():
        label = value // 1000 if value >= 1000 else value
        if not 0 < label <= _LAST_LABEL:
            raise ValueError(
                f"{path}: pixel value {value}: expected a label (0 to {_LAST_LABEL}) or 1000 x label + number"
            )
        if label not in CLASSES:
            continue
        rle = coco_mask.encode((ids == value).view(np.uint8))
        objects.append(
            {
                "iscrowd": int(value < 1000),
                "category_id": label,
                "bbox": coco_mask.toBbox(rle).tolist(),
                "area": int(coco_mask.area(rle)),
                "segmentation": {"size": list(size), "counts": rle["counts"].decode("ascii")},
            }
        )
    return objects


def _read_ids(path: Path, size: tuple[int, int]) -> np.ndarray:
    """Pixel values [H, W] in column order, which pycocotools encodes without a copy."""
    try:
        with BoundedFile(path) as file, Image.open(file) as image:
            mode = image.mode
            ids = np.asfortranarray(image)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's on damaged PNG
        raise BrokenImageError(path, str(error)) from error
    if not mode.startswith("I"):
        raise ValueError(f"{path}: expected a 16-bit gray PNG of instance ids, got pixels of mode {mode}")
    if ids.shape != size:
        raise ValueError(f"{path}: {list(ids.shape)} (height, width), but its image is {list(size)}")
    return ids
