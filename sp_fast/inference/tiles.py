"""Large images in overlapping tiles: objects that a seam cuts are put together again."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
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


@dataclass(frozen=True)
class _Found:
    """A mask of the image, as run lengths: those of many instances in a large image fit in memory."""

    rle: Any
    label: int
    score: float
    cut: bool


def predict_tiled(
    infer: Callable[[Iterable[np.ndarray]], Iterator[Instances]],
    image: np.ndarray,
    side: int,
    threshold: float,
    top_k: int,
) -> Instances:
    """Finds the instances of an image in overlapping square tiles, and in the whole image for large objects.

    Masks of one class which agree where their tiles overlap become one, with the best of their scores. Of two
    masks of a class that are nearly the same, the one with the higher score is kept.

    Args:
        infer: finds the instances of images, in batches.
        image: RGB, uint8 [H, W, 3].
        side: side of the tiles in pixels.
        threshold: least score of a mask, in a tile too.
        top_k: largest number of instances.
    """
    height, width = image.shape[:2]
    whole = next(infer([image])).select(threshold)
    if max(height, width) <= side:
        return whole
    tiles = [
        _Window(y0, x0, y1, x1) for (y0, y1), (x0, x1) in product(_spans(height, side), _spans(width, side))
    ]
    parts = [
        part
        for tile, found in zip(tiles, infer(image[tile.pixels] for tile in tiles), strict=True)
        for part in _parts(tile, found.select(threshold))
    ]
    own = zip(whole.masks, whole.labels, whole.scores, strict=True)
    uncut = [_Found(_encoded(mask), int(label), float(score), False) for mask, label, score in own]
    kept = _without_duplicates([*uncut, *_merge(parts, height, width)])[:top_k]
    masks = np.zeros((len(kept), height, width), dtype=bool)
    for mask, one in zip(masks, kept, strict=True):
        mask[:] = coco_mask.decode(one.rle)
    scores, labels = np.array([one.score for one in kept]), np.array([one.label for one in kept])
    return Instances.from_masks(masks, scores, labels, whole.classes)


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


def _merge(parts: list[_Part], height: int, width: int) -> list[_Found]:
    """Joins the parts of each object."""
    rows, columns = _agreeing(parts)
    graph = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(parts), len(parts)))
    count, group = connected_components(graph, directed=False) if parts else (0, [])
    members: list[list[_Part]] = [[] for _ in range(count)]
    for part, k in zip(parts, group, strict=True):
        members[k].append(part)
    found = []
    for own in members:
        mask: np.ndarray = np.zeros((height, width), dtype=bool, order="F")
        for part in own:
            mask[part.box.pixels] |= part.mask
        score = max(part.score for part in own)
        found.append(_Found(_encoded(mask), own[0].label, score, _is_cut(own, height, width)))
    return found


def _is_cut(parts: list[_Part], height: int, width: int) -> bool:
    """Whether the joined parts end where a tile does, inside the image."""
    y0, x0 = min(part.box.y0 for part in parts), min(part.box.x0 for part in parts)
    y1, x1 = max(part.box.y1 for part in parts), max(part.box.x1 for part in parts)
    return any(
        (0 < y0 == part.tile.y0)
        or (0 < x0 == part.tile.x0)
        or (y1 == part.tile.y1 < height)
        or (x1 == part.tile.x1 < width)
        for part in parts
    )


def _agreeing(parts: list[_Part]) -> tuple[list[int], list[int]]:
    """Pairs of parts, from different tiles, which are of one object."""
    if not parts:
        return [], []
    boxes = np.array([(part.box.y0, part.box.x0, part.box.y1, part.box.x1) for part in parts])
    labels = np.array([part.label for part in parts])
    low = np.maximum(boxes[:, None, :2], boxes[:, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[:, 2:])
    near = np.triu((low < high).all(2) & (labels[:, None] == labels), k=1)
    pairs = [(i, j) for i, j in np.argwhere(near).tolist() if _agree(parts[i], parts[j])]
    return [i for i, _ in pairs], [j for _, j in pairs]


def _agree(one: _Part, other: _Part) -> bool:
    common = one.tile.common(other.tile)
    if one.tile == other.tile or common is None:
        return False
    a, b = one.within(common), other.within(common)
    return bool((a & b).sum() > AGREEMENT * (a | b).sum())


def _without_duplicates(found: list[_Found]) -> list[_Found]:
    """The masks that are neither a worse copy of another nor a piece of an uncut one; best first."""
    found = sorted(found, key=lambda one: -one.score)
    if not found:
        return []
    labels = np.array([one.label for one in found])
    cut = np.array([one.cut for one in found])
    same = labels[:, None] == labels
    rles = [one.rle for one in found]
    pieces = cut & ((_overlaps(rles, rles, True) > INSIDE) & same & ~cut).any(1)
    duplicates = (_overlaps(rles, rles, False) > DUPLICATE) & same
    kept = ~pieces
    for k in range(len(found)):
        if kept[k]:
            kept[k + 1 :] &= ~duplicates[k, k + 1 :]
    return [one for one, keep in zip(found, kept, strict=True) if keep]


def _encoded(mask: np.ndarray) -> Any:
    return coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))


def _overlaps(rles: list[Any], others: list[Any], of_the_first: bool) -> np.ndarray:
    """IoU of each pair, or the share of the first that is inside the other, float64 [n, m]."""
    return coco_mask.iou(rles, others, [int(of_the_first)] * len(others))


def _relative(window: _Window, origin: _Window) -> _Window:
    return _Window(window.y0 - origin.y0, window.x0 - origin.x0, window.y1 - origin.y0, window.x1 - origin.x0)
