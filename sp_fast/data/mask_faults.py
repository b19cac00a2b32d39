"""Checks of drawn masks: empty, outside the image, drawn twice, or not what `bbox` and `area` say."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pycocotools import mask as coco_mask

from sp_fast.data.faults import Fault, short
from sp_fast.data.rle import rle_areas, to_rle
from sp_fast.data.structure import mask_fault


class Drawn(NamedTuple):
    """An annotation with its mask: run lengths, area in pixels and tight box (xywh)."""

    position: int
    annotation: dict
    counts: bytes
    area: int
    box: list[float]


def draw(annotations: Sequence[tuple[int, dict]], image: dict) -> list[Drawn]:
    """Draws the masks of one image's annotations, each with its position in the file."""
    if not annotations:
        return []
    rles = [to_rle(one["segmentation"], image["height"], image["width"]) for _, one in annotations]
    texts = [rle["counts"].encode() if isinstance(rle["counts"], str) else rle["counts"] for rle in rles]
    rows = zip(annotations, texts, rle_areas(rles).tolist(), coco_mask.toBbox(rles).tolist(), strict=True)
    return [Drawn(*entry, *values) for entry, *values in rows]


def mask_faults(drawn: Drawn, image: dict) -> Iterator[Fault]:
    """The faults of one object."""
    one = drawn.annotation
    fitting = f"within {image['width']} x {image['height']} pixels"
    for kind, expected, got in _faults_of_shape(one["segmentation"], drawn.area, image, fitting):
        yield mask_fault(drawn.position, one, image, kind, expected, got)
    if not drawn.area:
        return
    if "bbox" in one:
        yield from _box_faults(drawn, image)
    if "area" in one and not _similar(one["area"], drawn.area):
        expected = f"the mask's area, about {drawn.area}"
        yield mask_fault(drawn.position, one, image, "area", expected, short(one["area"]), "area")


def _faults_of_shape(
    segmentation: Any, area: int, image: dict, fitting: str
) -> Iterator[tuple[str, str, str]]:
    polygons = segmentation if isinstance(segmentation, list) else []
    points = [
        value
        for polygon in polygons
        if len(polygon) >= 6
        for value in zip(polygon[::2], polygon[1::2], strict=True)
    ]
    if any(len(polygon) < 6 for polygon in polygons):
        yield "points", "polygons of at least three points", short(segmentation)
        if not points:
            return
    if not points:
        if not area:
            yield "empty", "a mask that covers pixels", "none"
        return
    x, y = zip(*points, strict=True)
    box = f"x {min(x):g} to {max(x):g}, y {min(y):g} to {max(y):g}"
    beyond = max(-min(x), -min(y), max(x) - image["width"], max(y) - image["height"])
    if not area:
        outside = min(x) >= image["width"] or min(y) >= image["height"] or max(x) <= 0 or max(y) <= 0
        yield ("outside", fitting, box) if outside else ("empty", "a mask that covers pixels", box)
    elif beyond > max(2, 0.01 * max(image["width"], image["height"])):
        yield "partly outside", fitting, box


def _box_faults(drawn: Drawn, image: dict) -> Iterator[Fault]:
    box = drawn.annotation["bbox"]
    if _fits(box, drawn.box):
        return
    x, y, right, bottom = box
    if _fits([x, y, right - x, bottom - y], drawn.box):
        kind, expected = "xyxy", "[x, y, width, height]"
    elif min(box[2:]) <= 0 or coco_mask.iou([box], [drawn.box], [0])[0, 0] < 0.5:
        kind, expected = "box", "the mask's box"
    else:
        return
    expected += f" [{', '.join(f'{value:.0f}' for value in drawn.box)}]"
    yield mask_fault(drawn.position, drawn.annotation, image, kind, expected, short(box), "bbox")


def _fits(box: Sequence[float], mask: Sequence[float]) -> bool:
    """Whether all four edges are within 10 % of the mask's longer side, or 4 pixels."""
    slack = max(4, 0.1 * max(mask[2:]))
    edges = zip(_corners(box), _corners(mask), strict=True)
    return min(box[2:]) > 0 and all(abs(one - other) <= slack for one, other in edges)


def _corners(box: Sequence[float]) -> tuple[float, ...]:
    return box[0], box[1], box[0] + box[2], box[1] + box[3]


def _similar(area: float, pixels: int) -> bool:
    return area > 0 and (pixels / 2 <= area <= 2 * pixels or abs(area - pixels) <= 32)


def object_twice(drawn: Sequence[Drawn], image: dict) -> Iterator[Fault]:
    """Objects of one image with the same class and the same pixels as one before."""
    seen: dict[tuple[Any, bytes], Any] = {}
    for one in drawn:
        key = one.annotation["category_id"], one.counts
        if not one.area:
            continue
        if key in seen:
            got = f"the pixels and class of annotation {short(seen[key])}"
            yield mask_fault(one.position, one.annotation, image, "object twice", "an object of its own", got)
        seen.setdefault(key, one.annotation["id"])
