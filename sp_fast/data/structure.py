"""Checks of a COCO-format dict by itself: keys, types, ids, numbers and masks, without the images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from sp_fast.data.faults import Fault, short
from sp_fast.data.rle import rle_pixels

# Polygons are drawn at five times their size: one wild coordinate would take all memory.
_FARTHEST = 10  # times the longer side of the image
_MOST_PIXELS = 2**31 - 1  # of an image; run lengths are 32-bit


def _is_id(value: Any) -> bool:
    return type(value) in (int, str)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip("/. ")) and "\0" not in value


def _is_side(value: Any) -> bool:
    return type(value) is int and 0 < value <= _MOST_PIXELS


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number of a size that masks, boxes and scores can have."""
    return type(value) in (int, float) and -1e15 < value < 1e15  # NaN is not


def _is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


def _is_crowd(value: Any) -> bool:
    return type(value) in (int, bool) and value in (0, 1)


# Key: whether the value is right, what is expected, whether the key has to be there.
_Check = tuple[Callable[[Any], bool], str, bool]
_ID: _Check = (_is_id, "a whole number or a text", True)
_SIDE: _Check = (_is_side, "a whole number of pixels above 0", True)
_PARTS: dict[str, dict[str, _Check]] = {
    "images": {"id": _ID, "file_name": (_is_name, "a file's name", True), "height": _SIDE, "width": _SIDE},
    "annotations": {
        "id": _ID,
        "image_id": _ID,
        "category_id": _ID,
        "segmentation": (lambda value: isinstance(value, (list, dict)), "polygons or run lengths", True),
        "bbox": (_is_box, "four finite numbers [x, y, width, height]", False),
        "area": (is_number, "a finite number", False),
        "iscrowd": (_is_crowd, "0 or 1", False),
    },
    "categories": {"id": _ID, "name": (lambda value: isinstance(value, str), "a text", True)},
}
_ONE = {"images": "image", "annotations": "annotation", "categories": "category"}


def structural_faults(coco: Any) -> Iterator[Fault]:
    """All faults of a COCO-format value that can be seen without its images and without drawing masks.

    An entry with a fault is not checked further, nor is an annotation of an image with a fault, so that
    every fault is named once.
    """
    top = list(_top_level(coco))
    yield from top
    if top:
        return
    good: dict[str, list[tuple[int, dict]]] = {part: [] for part in _PARTS}
    yield from _entries(coco["images"], "images", good["images"])
    names = {image["id"]: image["file_name"] for _, image in good["images"]}
    for fault in _entries(coco["annotations"], "annotations", good["annotations"]):
        name = names.get(fault.image)
        yield replace(fault, where=f"{fault.where} ({name})") if name else fault
    yield from _entries(coco["categories"], "categories", good["categories"])
    if not coco["categories"]:
        yield Fault("format", "", "categories", "at least one category", "an empty list")
    yield from _same_names([category for _, category in good["categories"]])
    yield from _masks(coco, good)


def _top_level(coco: Any) -> Iterator[Fault]:
    if not isinstance(coco, dict):
        expected = f"a COCO-format dict with {', '.join(_PARTS)}"
        got = (
            "a list" + (" of results" if _is_results(coco) else "") if isinstance(coco, list) else short(coco)
        )
        yield Fault("format", "", "", expected, got)
        return
    for part in _PARTS:
        if part not in coco:
            yield Fault("format", "", part, "a list (a COCO-format file has it)", "no such key")
        elif not isinstance(coco[part], list):
            yield Fault("format", "", part, "a list", f"a {type(coco[part]).__name__}")


def _is_results(value: list) -> bool:
    return bool(value) and isinstance(value[0], dict) and "score" in value[0]


def _entries(entries: list, part: str, good: list[tuple[int, dict]]) -> Iterator[Fault]:
    """The faults of one part by itself; entries without any are appended to `good`."""
    seen: dict[Any, int] = {}
    types = {type(entry.get("id")) for entry in entries if isinstance(entry, dict)}
    if {int, str} <= types:
        yield Fault("mixed ids", "", f"{part}.id", "ids of one type", "both numbers and texts", part)
    for position, entry in enumerate(entries):
        found = list(_entry(entry, part, position))
        if not found and entry["id"] in seen:
            first = f"also the id of {part}[{seen[entry['id']]}]"
            found = [
                _fault(
                    "id", part, position, entry, "id", "an id of its own", f"{short(entry['id'])}, {first}"
                )
            ]
        yield from found
        if not found:
            seen[entry["id"]] = position
            good.append((position, entry))


def _entry(entry: Any, part: str, position: int) -> Iterator[Fault]:
    if not isinstance(entry, dict):
        yield Fault("type", f"{part}[{position}]", "", "a dict", short(entry), part, position)
        return
    for key, (is_right, expected, needed) in _PARTS[part].items():
        if key not in entry:
            if needed:
                yield _fault("key", part, position, entry, key, expected, "no such key")
        elif not is_right(entry[key]):
            number = isinstance(entry[key], (float, list)) and not needed
            kind = "number" if number and _has_wild_number(entry[key]) else "type"
            value = entry[key]
            got = repr(value) if isinstance(value, float) else short(value)  # 1.0 is not 1
            yield _fault(kind, part, position, entry, key, expected, got)
    sides: list[Any] = [entry.get("height"), entry.get("width")]
    if part == "images" and all(map(_is_side, sides)) and sides[0] * sides[1] > _MOST_PIXELS:
        got = f"{sides[0]} x {sides[1]}"
        yield _fault("number", part, position, entry, "height", f"at most {_MOST_PIXELS} pixels", got)


def _has_wild_number(value: Any) -> bool:
    values = value if isinstance(value, list) else [value]
    return any(type(one) in (int, float) and not is_number(one) for one in values)


def _fault(kind: str, part: str, position: int, entry: dict, field: str, expected: str, got: str) -> Fault:
    where = f"{_ONE[part]} {short(entry['id'])}" if _is_id(entry.get("id")) else f"{part}[{position}]"
    name = entry.get("file_name")
    if part == "images" and isinstance(name, str):
        where += f" ({name})"
    key = "id" if part == "images" else "image_id"
    image = entry.get(key) if _is_id(entry.get(key)) else None
    return Fault(kind, where, field, expected, got, part, position, image)


def _same_names(categories: list[dict]) -> Iterator[Fault]:
    ids: dict[str, list[Any]] = {}
    for category in categories:
        ids.setdefault(category["name"], []).append(category["id"])
    for name, those in ids.items():
        if len(those) > 1:
            got = f"{short(name)} for the ids {', '.join(map(str, those[:5]))}"
            yield Fault("class name", "", "categories.name", "a name of its own for each category", got)


def _masks(coco: dict, good: dict[str, list[tuple[int, dict]]]) -> Iterator[Fault]:
    images = {image["id"]: image for _, image in good["images"]}
    # Of faulty entries too, so that their annotations are not called unknown.
    listed = {
        part: {entry["id"] for entry in coco[part] if isinstance(entry, dict) and _is_id(entry.get("id"))}
        for part in ("images", "categories")
    }
    texts: list[tuple[int, dict]] = []
    for position, one in good["annotations"]:
        unknown = False
        for key, part in (("image_id", "images"), ("category_id", "categories")):
            if one[key] not in listed[part]:
                unknown = True
                expected, got = f"an id of '{part}'", short(one[key])
                fault = _fault("reference", "annotations", position, one, key, expected, got)
                name = images.get(one["image_id"], {}).get("file_name")
                yield replace(fault, where=f"{fault.where} ({name})") if name else fault
        if unknown or one["image_id"] not in images:
            continue
        image = images[one["image_id"]]
        found = problem_of_mask(one["segmentation"], image["height"], image["width"])
        if found:
            yield mask_fault(position, one, image, *found)
        elif isinstance(one["segmentation"], dict) and isinstance(one["segmentation"]["counts"], str):
            texts.append((position, one))
    yield from _damaged_texts(texts, images)


def mask_fault(
    position: int, one: dict, image: dict, kind: str, expected: str, got: str, field: str = ""
) -> Fault:
    """A fault of an annotation, which names its image's file too."""
    where = f"annotation {short(one['id'])} ({image['file_name']})"
    field = field or "segmentation"
    return Fault(kind, where, field, expected, got, "annotations", position, image["id"])


def problem_of_mask(value: Any, height: int, width: int) -> tuple[str, str, str] | None:
    """Kind, what is expected and what came, of the first fault of a segmentation."""
    if isinstance(value, list):
        return _problem_of_polygons(value, height, width)
    if not {"size", "counts"} <= value.keys():
        return "run lengths", "a dict of 'size' and 'counts'", short(value)
    size, counts = value["size"], value["counts"]
    if not isinstance(size, list) or size != [height, width] or not set(map(type, size)) <= {int}:
        return "run lengths", f"the image's size {[height, width]} (height, width)", f"size {short(size)}"
    if isinstance(counts, list):
        if not set(map(type, counts)) <= {int} or min(counts, default=0) < 0:
            return "run lengths", "counts of whole numbers from 0", short(counts)
        if sum(counts) != height * width:
            return "run lengths", f"counts of {height * width} pixels in all", short(sum(counts))
    elif not isinstance(counts, str):
        return "run lengths", "counts as a text or a list of numbers", short(counts)
    return None


def _problem_of_polygons(polygons: list, height: int, width: int) -> tuple[str, str, str] | None:
    flat = "polygons [[x0, y0, x1, y1, ...], ...]"
    if not all(isinstance(polygon, list) for polygon in polygons):
        return "polygon", flat, short(polygons)
    if polygons and all(
        polygon and all(isinstance(point, list) for point in polygon) for polygon in polygons
    ):
        return "point pairs", flat, short(polygons)
    if len(polygons) > 2 and all(len(polygon) == 2 for polygon in polygons):
        return "point pairs", flat, short(polygons)
    farthest = _FARTHEST * max(height, width)
    inside_one = bool(polygons)
    for polygon in polygons:
        if not set(map(type, polygon)) <= {int, float}:
            return "polygon", "numbers as coordinates", short(polygon)
        if len(polygon) % 2:
            return "polygon", "an even number of coordinates", f"{len(polygon)}: {short(polygon)}"
        if not polygon:
            continue
        low, high = min(polygon), max(polygon)
        # The sum finds the NaN that neither the least nor the greatest shows.
        if not (low >= -farthest and high <= farthest) or sum(polygon) != sum(polygon):
            wild = next(x for x in polygon if not -farthest <= x <= farthest)
            return "number", f"finite coordinates within an image of {width} x {height}", short(wild)
        inside_one = inside_one and low >= 0 and high <= 1
    if inside_one and any(polygons) and max(height, width) > 4:
        return "normalised", f"pixels of an image of {width} x {height}", short(polygons)
    return None


def _damaged_texts(texts: Sequence[tuple[int, dict]], images: dict[Any, dict]) -> Iterator[Fault]:
    totals = rle_pixels([one["segmentation"]["counts"] for _, one in texts]).tolist()
    for (position, one), total in zip(texts, totals, strict=True):
        image = images[one["image_id"]]
        pixels = image["height"] * image["width"]
        if total != pixels:
            got = "text that cannot be decoded" if total < 0 else str(total)
            yield mask_fault(position, one, image, "run lengths", f"counts of {pixels} pixels in all", got)
