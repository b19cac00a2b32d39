"""Reading, checking and writing COCO-format annotation files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pycocotools import mask as coco_mask

from sp_fast.data.rle import rle_areas, rle_pixels, to_rle
from sp_fast.files import replacing

_KEYS = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("id", "image_id", "category_id", "segmentation"),
    "categories": ("id", "name"),
}


def load_coco(
    path: str | os.PathLike[str], images: str | os.PathLike[str] | None = None, *, tight_boxes: bool = False
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
    for problem in _problems(coco):
        raise ValueError(f"{path}: {problem}")
    _fill_in(coco["annotations"], _sizes(coco), tight_boxes)
    if images is not None:
        _check_files(path, coco["images"], Path(images))
    return coco


def save_coco(coco: dict[str, Any] | list[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write a COCO-format dict, or a list of results in COCO's format, as JSON (atomic write)."""
    with replacing(Path(path)) as file:
        file.write(_json(coco))


def write_masks(
    out: BinaryIO,
    info: dict[str, Any],
    images: Iterable[dict[str, Any]],
    masks: Iterable[dict[str, Any]],
    classes: Sequence[str] = ("object",),
) -> int:
    """Write a COCO-format file of masks without holding them all in memory.

    Args:
        out: file to write.
        info: any JSON values.
        images: one dict per image with id, file_name, height and width.
        masks: one dict per mask with image_id, size (height, width), counts, bbox, area and any other keys;
            category_id is 1 unless given.
        classes: names of the categories 1, 2, ...

    Returns:
        The number of masks, which get the ids 1, 2, ...
    """

    def write_all(entries: Iterable[dict[str, Any]]) -> int:
        number = 0
        for number, entry in enumerate(entries, start=1):
            out.write((b",\n" if number > 1 else b"\n") + _json(entry))
        return number

    categories = [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]
    out.write(b'{"info":' + _json(info) + b',"categories":' + _json(categories) + b',"images":[')
    write_all(images)
    out.write(b'],"annotations":[')
    count = write_all(_annotation(number, **mask) for number, mask in enumerate(masks, start=1))
    out.write(b"]}\n")
    return count


def _annotation(
    number: int,
    *,
    image_id: int,
    size: list[int],
    counts: str,
    bbox: list[int],
    area: int,
    category_id: int = 1,
    **others: Any,
) -> dict[str, Any]:
    segmentation = {"size": size, "counts": counts}
    known = {"id": number, "image_id": image_id, "category_id": category_id, "segmentation": segmentation}
    return {**known, "bbox": bbox, "area": area, "iscrowd": 0, **others}


def _json(value: Any) -> bytes:
    return json.dumps(value, default=_plain, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    """Convert what json cannot write: bytes (pycocotools' run lengths) and numpy values."""
    if isinstance(value, bytes):
        return value.decode("ascii")
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"cannot write a {type(value).__name__} to a COCO-format file")


def _problems(coco: Any) -> Iterator[str]:
    """What is wrong with a file; each check relies on the ones before it."""
    if not isinstance(coco, dict):
        yield f"expected a COCO-format dict with {', '.join(_KEYS)}, got a {type(coco).__name__}"
    for part, keys in _KEYS.items():
        yield from _problems_of_part(coco, part, keys)
    names = [category["name"] for category in coco["categories"]]
    if not names:
        yield "'categories' is empty"
    yield from (f"the name {name!r} appears twice in 'categories'" for name in names if names.count(name) > 1)
    for image in coco["images"]:
        size = image["height"], image["width"]
        if not all(isinstance(side, int) and side > 0 for side in size):
            yield (
                f"image {image['id']} has height {size[0]!r} and width {size[1]!r}: expected whole "
                "numbers of pixels above 0"
            )
    for key, part in (("image_id", "images"), ("category_id", "categories")):
        known = {entry["id"] for entry in coco[part]}
        for annotation in coco["annotations"]:
            value = annotation[key]
            if not isinstance(value, (int, str)) or value not in known:
                yield f"annotation {annotation['id']} has {key} {value!r}, which is not in '{part}'"
    sizes = _sizes(coco)
    for annotation in coco["annotations"]:
        for why in _problems_of_mask(annotation["segmentation"], sizes[annotation["image_id"]]):
            yield f"annotation {annotation['id']} has a bad segmentation: {why}"
    yield from _problems_of_text(coco["annotations"], sizes)


def _problems_of_part(coco: dict[str, Any], part: str, keys: Sequence[str]) -> Iterator[str]:
    if part not in coco:
        yield f"the key '{part}' is missing (a COCO-format file has {', '.join(_KEYS)})"
    if not isinstance(coco[part], list):
        yield f"'{part}' must be a list, got a {type(coco[part]).__name__}"
    seen = set()
    for position, entry in enumerate(coco[part]):
        if not isinstance(entry, dict):
            yield f"{part}[{position}] must be a dict, got a {type(entry).__name__}"
        for key in keys:
            if key not in entry:
                name = f" (id {entry['id']})" if "id" in entry else ""
                yield f"{part}[{position}]{name} lacks the key '{key}'"
        if not isinstance(entry["id"], (int, str)):
            yield f"{part}[{position}] has the id {entry['id']!r}: expected a number"
        if entry["id"] in seen:
            yield f"the id {entry['id']} appears twice in '{part}'"
        seen.add(entry["id"])


def _problems_of_mask(segmentation: Any, size: tuple[int, int]) -> Iterator[str]:
    if isinstance(segmentation, list):
        if not all(_is_polygon(polygon) for polygon in segmentation):
            yield "a polygon must be a list with an even number of coordinates"
        return
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        yield "expected polygons or a dict of 'size' and 'counts'"
    got, counts = segmentation["size"], segmentation["counts"]
    if not isinstance(got, (list, tuple)) or tuple(got) != size:
        yield f"its run lengths have size {got}, but its image is {list(size)} (height, width)"
    if isinstance(counts, list):
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            yield "run lengths must be non-negative integers"
        if sum(counts) != size[0] * size[1]:
            yield f"its run lengths sum to {sum(counts)}, expected {size[0] * size[1]} pixels"
    elif not isinstance(counts, str):
        yield "'counts' must be a string or a list of numbers"


def _problems_of_text(annotations: list[dict], sizes: dict[Any, tuple[int, int]]) -> Iterator[str]:
    texts = [one for one in annotations if isinstance(one["segmentation"], dict)]
    texts = [one for one in texts if isinstance(one["segmentation"]["counts"], str)]
    for part in _slices(texts):
        totals = rle_pixels([one["segmentation"]["counts"] for one in part])
        for one, total in zip(part, totals.tolist(), strict=True):
            height, width = sizes[one["image_id"]]
            if total != height * width:
                got = "cannot be decoded" if total < 0 else f"cover {total} pixels, expected {height * width}"
                yield f"annotation {one['id']} has a bad segmentation: its compressed run lengths {got}"


def _is_polygon(polygon: Any) -> bool:
    return (
        isinstance(polygon, list)
        and len(polygon) % 2 == 0
        and all(isinstance(value, (int, float)) for value in polygon)
    )


def _sizes(coco: dict[str, Any]) -> dict[Any, tuple[int, int]]:
    return {image["id"]: (image["height"], image["width"]) for image in coco["images"]}


def _slices(annotations: list[dict], length: int = 65536) -> Iterator[list[dict]]:
    """Slices that limit the memory for files with millions of masks."""
    return (annotations[start : start + length] for start in range(0, len(annotations), length))


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


def _fill_in(annotations: list[dict], sizes: dict[Any, tuple[int, int]], tight_boxes: bool) -> None:
    for annotation in annotations:
        annotation.setdefault("iscrowd", 0)
        if tight_boxes:
            annotation.pop("bbox", None)
            annotation.pop("area", None)
    lacking = [one for one in annotations if "bbox" not in one or "area" not in one]
    for part in _slices(lacking):
        rles = [to_rle(one["segmentation"], *sizes[one["image_id"]]) for one in part]
        for one, box, area in zip(part, coco_mask.toBbox(rles), rle_areas(rles), strict=True):
            one.setdefault("bbox", box.tolist())
            one.setdefault("area", float(area))
