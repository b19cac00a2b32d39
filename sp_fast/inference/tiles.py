"""Large images in overlapping tiles: objects that a seam cuts are put together again."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sp_fast.inference.instances import Instances

OVERLAP = 0.2  # least overlap of two neighbouring tiles, as a share of their side
AGREEMENT = 0.5  # IoU, where two tiles overlap, above which two masks are of one object
DUPLICATE = 0.5  # IoU above which the mask with the lower score is left out
INSIDE = 0.8  # share of a cut mask inside a whole one above which it is taken for a part of it


@dataclass(frozen=True)
class _Window:
    """A rectangle of pixels of the image, half-open."""

    y0: int
    x0: int
    y1: int
    x1: int

    @property
    def pixels(self) -> tuple[slice, slice]:
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    def common(self, other: _Window) -> _Window | None:
        y0, x0 = max(self.y0, other.y0), max(self.x0, other.x0)
        y1, x1 = min(self.y1, other.y1), min(self.x1, other.x1)
        return _Window(y0, x0, y1, x1) if y0 < y1 and x0 < x1 else None


@dataclass(frozen=True)
class _Part:
    """A mask in a tile, cut out to its box, with both windows in pixels of the image."""

    tile: _Window
    box: _Window
    mask: np.ndarray
    label: int
    score: float

    def within(self, window: _Window) -> np.ndarray:
        """The mask in a window, bool."""
        result: np.ndarray = np.zeros((window.y1 - window.y0, window.x1 - window.x0), dtype=bool)
        common = self.box.common(window)
        if common is not None:
            result[_relative(common, window).pixels] = self.mask[_relative(common, self.box).pixels]
        return result

    def is_cut(self, height: int, width: int) -> bool:
        """Whether it touches an edge of its tile that is not one of the image."""
        box, tile = self.box, self.tile
        return (
            (0 < tile.y0 == box.y0)
            or (0 < tile.x0 == box.x0)
            or (box.y1 == tile.y1 < height)
            or (box.x1 == tile.x1 < width)
        )


def predict_tiled(
    infer: Callable[[list[np.ndarray]], list[Instances]], image: np.ndarray, side: int, threshold: float
) -> Instances:
    """Finds the instances of an image in overlapping square tiles, and in the whole image for large objects.

    Masks of one class which agree where their tiles overlap become one, with the best of their scores. Of two
    masks of a class that are nearly the same, the one with the higher score is kept.

    Args:
        infer: finds the instances of images; see `Model._infer`.
        image: RGB, uint8 [H, W, 3].
        side: side of the tiles in pixels.
        threshold: least score of a mask in a tile.
    """
    height, width = image.shape[:2]
    whole = infer([image])[0].select(threshold)
    if max(height, width) <= side:
        return whole
    tiles = [
        _Window(y0, x0, y1, x1) for (y0, y1), (x0, x1) in product(_spans(height, side), _spans(width, side))
    ]
    parts = [
        part
        for tile, found in zip(tiles, infer([image[tile.pixels] for tile in tiles]), strict=True)
        for part in _parts(tile, found.select(threshold))
    ]
    merged, cut = _merge(parts, height, width, whole.classes)
    return _without_duplicates(whole, merged, cut)


def _spans(length: int, side: int) -> list[tuple[int, int]]:
    """Starts and ends of tiles that cover `length` pixels evenly."""
    if length <= side:
        return [(0, length)]
    count = math.ceil((length - side) / (side * (1 - OVERLAP))) + 1
    starts = np.linspace(0, length - side, count).round().astype(int)
    return [(int(start), int(start) + side) for start in starts]


def _parts(tile: _Window, found: Instances) -> list[_Part]:
    parts = []
    for mask, box, label, score in zip(found.masks, found.boxes, found.labels, found.scores, strict=True):
        x0, y0, x1, y1 = (int(value) for value in box)
        window = _Window(tile.y0 + y0, tile.x0 + x0, tile.y0 + y1, tile.x0 + x1)
        parts.append(_Part(tile, window, mask[y0:y1, x0:x1].copy(), int(label), float(score)))
    return parts


def _merge(
    parts: list[_Part], height: int, width: int, classes: tuple[str, ...]
) -> tuple[Instances, np.ndarray]:
    """Joins the parts of each object; also says which instances are still cut by a seam."""
    pairs = [(i, j) for i, j in combinations(range(len(parts)), 2) if _agree(parts[i], parts[j])]
    rows, columns = np.array(pairs, dtype=int).reshape(-1, 2).T
    graph = coo_array((np.ones(len(pairs)), (rows, columns)), shape=(len(parts), len(parts)))
    count, group = connected_components(graph, directed=False) if parts else (0, np.zeros(0, dtype=int))
    masks = np.zeros((count, height, width), dtype=bool)
    scores, labels = np.zeros(count, dtype=np.float32), np.zeros(count, dtype=np.int64)
    for part, k in zip(parts, group, strict=True):
        masks[k][part.box.pixels] |= part.mask
        scores[k], labels[k] = max(scores[k], part.score), part.label
    alone = np.bincount(group, minlength=count) == 1
    cut = np.zeros(count, dtype=bool)
    for part, k in zip(parts, group, strict=True):
        cut[k] = alone[k] and part.is_cut(height, width)
    merged = Instances.from_masks(masks, scores, labels, classes)
    return merged, cut[np.argsort(-scores, kind="stable")]


def _agree(one: _Part, other: _Part) -> bool:
    common = one.tile.common(other.tile)
    if one.label != other.label or one.tile == other.tile or common is None or not one.box.common(other.box):
        return False
    a, b = one.within(common), other.within(common)
    return bool((a & b).sum() > AGREEMENT * (a | b).sum())


def _without_duplicates(whole: Instances, merged: Instances, cut: np.ndarray) -> Instances:
    scores = np.concatenate([whole.scores, merged.scores])
    labels = np.concatenate([whole.labels, merged.labels])
    rles = [*_encoded(whole.masks), *_encoded(merged.masks)]
    ious = _overlaps(rles, rles, False)
    same = labels[:, None] == labels
    kept: np.ndarray = np.ones(len(scores), dtype=bool)
    if len(whole):
        inside = (_overlaps(rles, rles[: len(whole)], True) * same[:, : len(whole)]).max(1) > INSIDE
        kept[len(whole) :] = ~(cut & inside[len(whole) :])
    order = np.argsort(-scores, kind="stable")
    for place, k in enumerate(order):
        if kept[k]:
            later = order[place + 1 :]
            kept[later[same[k, later] & (ious[k, later] > DUPLICATE)]] = False
    masks = np.concatenate([whole.masks[kept[: len(whole)]], merged.masks[kept[len(whole) :]]])
    return Instances.from_masks(masks, scores[kept], labels[kept], whole.classes)


def _encoded(masks: np.ndarray) -> list[Any]:
    return [coco_mask.encode(np.asfortranarray(mask.view(np.uint8))) for mask in masks]


def _overlaps(rles: list[Any], others: list[Any], of_the_first: bool) -> np.ndarray:
    """IoU of each pair, or the share of the first that is inside the other, float64 [n, m]."""
    if not rles or not others:
        return np.zeros((len(rles), len(others)))
    return coco_mask.iou(rles, others, [int(of_the_first)] * len(others))


def _relative(window: _Window, origin: _Window) -> _Window:
    return _Window(window.y0 - origin.y0, window.x0 - origin.x0, window.y1 - origin.y0, window.x1 - origin.x0)
