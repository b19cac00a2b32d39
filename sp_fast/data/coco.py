"""Reading, checking and writing COCO-format annotation files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from sp_fast.data.rle import rle_areas, rle_pixels, to_rle
from sp_fast.files import write_text

_KEYS = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "segmentation"),
    "categories": ("id", "name"),
}


def load_coco(
    path: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    *,
    tight_boxes: bool = False,
) -> dict[str, Any]:
    """Load and check a COCO-format file of instance masks.

    `segmentation` may be polygons [[x0, y0, x1, y1, ...], ...] or run lengths (compressed or not) of the
    image's size. Missing `bbox` (xywh, pixels), `area` and `iscrowd` are filled in.

    Args:
        path: JSON file.
        images: folder of the images; if given, every `file_name` must exist in it.
        tight_boxes: compute every `bbox` and `area` from the mask, replacing those of the file.

    Raises:
        FileNotFoundError: the file does not exist, or images are missing from `images`.
        ValueError: not JSON, a missing key, a duplicate id, an unknown image_id or category_id, or a
            segmentation that is not a mask of its image. The message names the file and the entry.
    """
    path = Path(path)
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"no such annotation file: {path}") from None
    try:
        coco = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(coco, dict):
        raise ValueError(
            f"{path}: expected a COCO-format dict with {', '.join(_KEYS)}, got a {type(coco).__name__}"
        )
    for part, keys in _KEYS.items():
        _check_part(path, coco, part, keys)
    _check_names(path, coco["categories"])
    sizes = _image_sizes(path, coco["images"])
    _check_references(path, coco["annotations"], "image_id", sizes.keys(), "images")
    known = {category["id"] for category in coco["categories"]}
    _check_references(path, coco["annotations"], "category_id", known, "categories")
    _check_segmentations(path, coco["annotations"], sizes)
    _fill_in(coco["annotations"], sizes, tight_boxes)
    if images is not None:
        _check_files(path, coco["images"], Path(images))
    return coco


def save_coco(coco: dict[str, Any] | list[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write a COCO-format dict, or a list of results in COCO's format, as JSON (atomic write)."""
    write_text(json.dumps(coco, default=_plain, separators=(",", ":")), Path(path))


def _plain(value: Any) -> Any:
    """Convert what json cannot write: bytes (pycocotools' run lengths) and numpy values."""
    if isinstance(value, bytes):
        return value.decode("ascii")
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"cannot write a {type(value).__name__} to a COCO-format file")


def _check_part(path: Path, coco: dict[str, Any], part: str, keys: Sequence[str]) -> None:
    if part not in coco:
        raise ValueError(f"{path}: the key '{part}' is missing (a COCO-format file has {', '.join(_KEYS)})")
    if not isinstance(coco[part], list):
        raise ValueError(f"{path}: '{part}' must be a list, got a {type(coco[part]).__name__}")
    seen = set()
    for position, entry in enumerate(coco[part]):
        if not isinstance(entry, dict):
            raise ValueError(f"{path}: {part}[{position}] must be a dict, got a {type(entry).__name__}")
        for key in keys:
            if key not in entry:
                name = f" (id {entry['id']})" if "id" in entry else ""
                raise ValueError(f"{path}: {part}[{position}]{name} lacks the key '{key}'")
        if not isinstance(entry["id"], (int, str)):
            raise ValueError(f"{path}: {part}[{position}] has the id {entry['id']!r}: expected a number")
        if entry["id"] in seen:
            raise ValueError(f"{path}: the id {entry['id']} appears twice in '{part}'")
        seen.add(entry["id"])


def _check_names(path: Path, categories: list[dict]) -> None:
    names = [category["name"] for category in categories]
    if not names:
        raise ValueError(f"{path}: 'categories' is empty")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{path}: the name {name!r} appears twice in 'categories'")


def _image_sizes(path: Path, images: list[dict]) -> dict[Any, tuple[int, int]]:
    sizes = {}
    for image in images:
        size = image["height"], image["width"]
        if not all(isinstance(side, int) and side > 0 for side in size):
            raise ValueError(
                f"{path}: image {image['id']} has height {size[0]!r} and width {size[1]!r}: expected whole "
                "numbers of pixels above 0"
            )
        sizes[image["id"]] = size
    return sizes


def _check_references(path: Path, annotations: list[dict], key: str, known: Iterable[Any], part: str) -> None:
    known = set(known)
    for annotation in annotations:
        value = annotation[key]
        if not isinstance(value, (int, str)) or value not in known:
            raise ValueError(
                f"{path}: annotation {annotation['id']} has {key} {value!r}, which is not in '{part}'"
            )


def _check_files(path: Path, images: list[dict], folder: Path) -> None:
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder of images: {folder}")
    missing = [image["file_name"] for image in images if not (folder / image["file_name"]).is_file()]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise FileNotFoundError(
            f"{path}: {len(missing)} of {len(images)} images are not in {folder}: "
            f"{', '.join(missing[:5])}{more}"
        )


def _check_segmentations(path: Path, annotations: list[dict], sizes: dict[Any, tuple[int, int]]) -> None:
    compressed = []
    for annotation in annotations:
        segmentation, size = annotation["segmentation"], sizes[annotation["image_id"]]
        fail = _bad_segmentation(path, annotation)
        if isinstance(segmentation, list):
            if not all(_is_polygon(polygon) for polygon in segmentation):
                raise fail("a polygon must be a list with an even number of coordinates")
        elif not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
            raise fail("expected polygons or a dict of 'size' and 'counts'")
        elif not _is_pair(segmentation["size"]) or tuple(segmentation["size"]) != size:
            got = segmentation["size"]
            raise fail(f"its run lengths have size {got}, but its image is {list(size)} (height, width)")
        elif isinstance(segmentation["counts"], list):
            counts = segmentation["counts"]
            if not all(isinstance(count, int) and count >= 0 for count in counts):
                raise fail("run lengths must be non-negative integers")
            if sum(counts) != size[0] * size[1]:
                raise fail(f"its run lengths sum to {sum(counts)}, expected {size[0] * size[1]} pixels")
        elif isinstance(segmentation["counts"], str):
            compressed.append(annotation)
        else:
            raise fail("'counts' must be a string or a list of numbers")
    # In slices, to limit memory for files with millions of masks.
    for start in range(0, len(compressed), 65536):
        part = compressed[start : start + 65536]
        totals = rle_pixels([annotation["segmentation"]["counts"] for annotation in part])
        for annotation, total in zip(part, totals.tolist(), strict=True):
            height, width = sizes[annotation["image_id"]]
            if total != height * width:
                got = "cannot be decoded" if total < 0 else f"cover {total} pixels, expected {height * width}"
                raise _bad_segmentation(path, annotation)(f"its compressed run lengths {got}")


def _bad_segmentation(path: Path, annotation: dict) -> Callable[[str], ValueError]:
    return lambda why: ValueError(f"{path}: annotation {annotation['id']} has a bad segmentation: {why}")


def _is_polygon(polygon: Any) -> bool:
    return (
        isinstance(polygon, list)
        and len(polygon) % 2 == 0
        and all(isinstance(value, (int, float)) for value in polygon)
    )


def _is_pair(size: Any) -> bool:
    return isinstance(size, (list, tuple)) and len(size) == 2


def _fill_in(annotations: list[dict], sizes: dict[Any, tuple[int, int]], tight_boxes: bool) -> None:
    for annotation in annotations:
        annotation.setdefault("iscrowd", 0)
        if tight_boxes:
            annotation.pop("bbox", None)
            annotation.pop("area", None)
    lacking = [one for one in annotations if "bbox" not in one or "area" not in one]
    for start in range(0, len(lacking), 65536):
        part = lacking[start : start + 65536]
        rles = [to_rle(one["segmentation"], *sizes[one["image_id"]]) for one in part]
        for one, box, area in zip(part, coco_mask.toBbox(rles), rle_areas(rles), strict=True):
            one.setdefault("bbox", box.tolist())
            one.setdefault("area", float(area))
