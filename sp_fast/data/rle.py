"""COCO's run-length encoded masks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import hypot
from operator import mul, sub
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


def to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Convert the polygons or run lengths of one object to pycocotools' compressed run lengths."""
    if isinstance(segmentation, list):
        polygons = [polygon for polygon in segmentation if len(polygon) >= 6]
        if not polygons:
            return coco_mask.encode(np.zeros((height, width), dtype=np.uint8, order="F"))
        return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    return segmentation


def box_masks(boxes: Any, height: int, width: int) -> list[dict[str, Any]]:
    """Compressed run lengths of the boxes `[n, 4]` (xywh, pixels), clipped to the image.

    Boxes without a positive width and height give empty masks.
    """
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    # pycocotools walks along the whole outline: a box far beyond the image would take all memory.
    first = np.clip(boxes[:, :2], 0, [width, height])
    last = np.clip(boxes[:, :2] + boxes[:, 2:], first, [width, height])
    inside = np.concatenate([first, last - first], axis=1)
    return coco_mask.frPyObjects(inside, height, width) if len(boxes) else []


def may_be_empty(segmentation: Any, size: tuple[int, int]) -> bool:
    """False if the polygons or run lengths of one object surely cover pixels of an image of (height, width).

    Much faster than drawing; polygons have at least three points.
    """
    if isinstance(segmentation, list):
        return not any(_surely_covers(polygon, *size) for polygon in segmentation)
    if isinstance(segmentation["counts"], list):
        return not any(segmentation["counts"][1::2])
    return not coco_mask.area(segmentation)


def _surely_covers(polygon: list[float], height: int, width: int) -> bool:
    x, y = polygon[::2], polygon[1::2]
    if min(polygon) < 0 or max(x) > width or max(y) > height:
        return False
    next_x, next_y = x[1:] + x[:1], y[1:] + y[:1]
    area = abs(sum(map(mul, x, next_y)) - sum(map(mul, y, next_x))) / 2
    # Jarnik's bound: area and number of grid points inside a closed curve differ by less than its length.
    return area > sum(map(hypot, map(sub, next_x, x), map(sub, next_y, y)))


def run_lengths(masks: np.ndarray) -> list[dict[str, Any]]:
    """Encode masks, bool [n, H, W], as compressed run lengths that are ready for JSON."""
    pixels = np.asfortranarray(masks.view(np.uint8).transpose(1, 2, 0))  # [H, W, n]
    return [dict(rle, counts=rle["counts"].decode("ascii")) for rle in coco_mask.encode(pixels)]


def best_ious(objects: Sequence[Any], found: Sequence[Any]) -> np.ndarray:
    """Best IoU of each object with any of `found`, float64 [len(objects)]; 0 if `found` is empty.

    Both hold compressed run lengths of one image, or boxes [x, y, w, h].
    """
    return ious(objects, found).max(axis=0, initial=0)


def ious(objects: Sequence[Any], found: Sequence[Any]) -> np.ndarray:
    """IoU of each of `found` with each object, float64 [len(found), len(objects)]; see `best_ious`."""
    matrix = coco_mask.iou(found, objects, [0] * len(objects))  # an empty list if either is empty
    return np.asarray(matrix, dtype=np.float64).reshape(len(found), len(objects))


def rle_areas(rles: Sequence[dict[str, Any]]) -> np.ndarray:
    """Area of each mask in pixels, int64 [len(rles)]; pycocotools' fails for lists of 256 or more."""
    return np.array([coco_mask.area(rle) for rle in rles], dtype=np.int64)


def rle_pixels(counts: Sequence[str]) -> np.ndarray:
    """Count the pixels, inside and outside the mask, of compressed run lengths without decoding them.

    A string holds numbers made of 5-bit groups, lowest first, each a character from 48 up; bit 5 means that
    another group follows, and bit 4 of the last group is the sign. From the fourth number on, it holds the
    difference to the number two places before (pycocotools' rleToString).

    Returns:
        int64 [len(counts)]: the sum of the run lengths, or -1 if the string is damaged.
    """
    lengths = np.array([len(string) for string in counts], dtype=np.int64)
    # Parts of about a million characters stay in the processor's cache, and bound the memory.
    starts = np.flatnonzero(np.diff(np.cumsum(lengths) >> 20, prepend=-1)).tolist()
    parts = [_pixels(counts[a:b], lengths[a:b]) for a, b in pairwise([*starts, len(counts)])]
    return np.concatenate([np.empty(0, dtype=np.int64), *parts])


def _pixels(counts: Sequence[str], lengths: np.ndarray) -> np.ndarray:
    totals: np.ndarray = np.full(len(counts), -1, dtype=np.int64)
    ascii_only = np.array([string.isascii() for string in counts], dtype=bool)
    keep: np.ndarray = np.flatnonzero((lengths > 0) & ascii_only)
    if not len(keep):
        return totals
    text = "".join(counts[k] for k in keep.tolist()).encode("ascii")
    codes = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - 48
    owner: np.ndarray = np.repeat(np.arange(len(keep)), lengths[keep])
    last = (codes & 0x20) == 0
    string_ends: np.ndarray = np.cumsum(lengths[keep]) - 1
    damaged = np.bincount(owner, weights=(codes < 0) | (codes > 63), minlength=len(keep)) > 0
    damaged |= ~last[string_ends]
    last[string_ends] = True  # so that no number reaches into the next string

    group_starts: np.ndarray = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    group_ends = np.flatnonzero(last)
    size = group_ends - group_starts + 1
    within = np.arange(len(codes)) - np.repeat(group_starts, size)
    damaged |= np.bincount(owner, weights=within > 11, minlength=len(keep)) > 0
    shift = 5 * np.minimum(within, 11)
    numbers = np.add.reduceat((codes & 0x1F) << shift, group_starts)
    numbers -= np.where(codes[group_ends] & 0x10, np.int64(1) << (5 * np.minimum(size, 12)), 0)

    owner = owner[group_starts]
    starts = np.unique(owner, return_index=True)[1]
    starts_of = starts[owner]
    place = np.arange(len(numbers)) - starts_of
    runs = np.where(place == 0, numbers, 0)
    for chain in ((place % 2 == 1), (place % 2 == 0) & (place > 0)):
        sums: np.ndarray = np.cumsum(np.where(chain, numbers, 0))
        before = np.concatenate([[0], sums])[starts_of]
        runs = np.where(chain, sums - before, runs)
    damaged |= np.bincount(owner, weights=runs < 0, minlength=len(keep)) > 0
    totals[keep] = np.where(damaged, -1, np.add.reduceat(runs, starts))
    return totals
