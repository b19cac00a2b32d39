"""How many annotated objects the first masks of each image find, and what their order costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sp_fast.data.rle import ious, rle_areas
from sp_fast.proposals.ranked import RankedMasks
from sp_fast.proposals.scores import Coverage, coverage_by_size

COUNTS = (10, 20, 40, 100)  # masks per image
AR_COUNTS = (10, 20, 100)
RANKS = np.arange(1, 101)
LIMITS = np.linspace(0.5, 0.95, 10)  # COCO's IoU thresholds
NEVER = np.iinfo(np.int64).max


class Orders(NamedTuple):
    """A value with the first 1, 2, ... 100 masks of each image in three orders; float64 [100] each.

    Attributes:
        by_score: in the order of the file.
        chance: expected in random order.
        perfect: in each step the mask that adds most, with the objects known (greedy choice).
    """

    by_score: np.ndarray
    chance: np.ndarray
    perfect: np.ndarray


class ImageRecall(NamedTuple):
    """Best IoU of an image's objects, averaged over them, with the first 10 masks and with all."""

    first: float
    all: float


@dataclass(frozen=True)
class Recall:
    """What the masks of a file find, by rank.

    Attributes:
        average_recall: COCO's AR with 10, 20 and 100 masks per image, classes ignored, objects of all sizes.
        coverage: for "first 10", "first 20", "first 40", "first 100" and "all" masks of each image, coverage
            by size of the objects; counts that no image exceeds are left out.
        above_half: share of objects whose best IoU is above 0.5.
        mean_best_iou: best IoU of each object, averaged over objects.
        by_image: the images that have objects, by file name.
    """

    average_recall: dict[int, float]
    coverage: dict[str, dict[str, Coverage]]
    above_half: Orders
    mean_best_iou: Orders
    by_image: dict[str, ImageRecall]


class _Part(NamedTuple):
    """One image with m objects: best IoU with COUNTS and all masks [5, m], see `found_at`, sums of Orders."""

    best: np.ndarray
    found_at: np.ndarray
    above_half: np.ndarray
    iou: np.ndarray


def measure_recall(found: RankedMasks, objects: RankedMasks, names: Iterable[str]) -> Recall:
    """Measure which of the objects the masks of the images `names` find; values are NaN without objects."""
    parts, areas, most = {}, [], 0
    for name in names:
        masks, wanted = found.masks[name], objects.masks[name]
        most = max(most, len(masks))
        if wanted:
            parts[name] = _of_image(ious(wanted, masks))
            areas.append(rle_areas(wanted))
    every = [_of_image(np.zeros((0, 0))), *parts.values()]  # never empty
    best = np.concatenate([part.best for part in every], axis=1)
    at = np.concatenate([part.found_at for part in every], axis=1)
    above_half: np.ndarray = np.sum([part.above_half for part in every], axis=0)
    iou: np.ndarray = np.sum([part.iou for part in every], axis=0)
    area = np.concatenate([np.zeros(0), *areas])
    keys = {k: f"first {count}" for k, count in enumerate(COUNTS) if count < most} | {len(COUNTS): "all"}
    with np.errstate(invalid="ignore"):  # 0 of 0 objects are NaN
        return Recall(
            average_recall={count: float(np.divide((at < count).sum(), at.size)) for count in AR_COUNTS},
            coverage={key: coverage_by_size(best[k], area) for k, key in keys.items()},
            above_half=Orders(*(above_half / len(area))),
            mean_best_iou=Orders(*(iou / len(area))),
            by_image={
                name: ImageRecall(float(part.best[0].mean()), float(part.best[-1].mean()))
                for name, part in parts.items()
            },
        )


def found_at(iou: np.ndarray) -> np.ndarray:
    """Rank, from 0, of the mask that finds each object, by COCO's matching; NEVER if none does.

    Masks choose in their order, each the free object with the highest IoU, so that the first k masks find
    the same objects whatever comes after them.

    Args:
        iou: IoU of each mask, best first, with each object [n, m].

    Returns:
        int64 [10, m], for the IoU thresholds 0.5 to 0.95.
    """
    ranks = np.full((len(LIMITS), iou.shape[1]), NEVER)
    for rank in np.flatnonzero((iou >= LIMITS[0]).any(axis=1)):
        free = np.where((ranks == NEVER) & (iou[rank] >= LIMITS[:, None]), iou[rank], 0)
        best = iou.shape[1] - 1 - free[:, ::-1].argmax(axis=1)  # pycocotools takes the last of equal ones
        rows = np.flatnonzero(free[np.arange(len(LIMITS)), best])
        ranks[rows, best[rows]] = rank
    return ranks


def _of_image(iou: np.ndarray) -> _Part:
    best = _so_far(iou)[np.minimum([*COUNTS, len(iou)], len(iou))]
    return _Part(best, found_at(iou), _orders((iou > 0.5).astype(float)), _orders(iou))


def _orders(values: np.ndarray) -> np.ndarray:
    """Sums over objects of the highest value with the first masks, [3, 100] as in `Orders`.

    `values` of each mask with each object are [n, m], best mask first.
    """
    count = np.minimum(RANKS, len(values))
    by_score = _so_far(values).sum(axis=1)[count]
    chance = _chances(len(values)) @ np.sort(values, axis=0)[::-1].sum(axis=1)
    return np.stack([by_score, chance, _greedy(values)[count]])


def _so_far(values: np.ndarray) -> np.ndarray:
    """The highest value of each object with the first 0, 1, ... n masks, [n + 1, m]."""
    return np.maximum.accumulate(np.concatenate([np.zeros((1, values.shape[1])), values]), axis=0)


def _chances(masks: int) -> np.ndarray:
    """The chance that, of the first 1, 2, ... 100 masks in random order, the k-th best is the best one.

    For x of n masks it is C(n - 1 - k, x - 1) / C(n, x); float64 [100, n].
    """
    if not masks:
        return np.zeros((len(RANKS), 0))
    taken = np.minimum(RANKS, masks)[:, None]
    worse = np.arange(masks - 1, 0, -1)  # number of masks worse than the k-th best
    ratios = np.maximum(worse + 1 - taken, 0) / worse
    return np.cumprod(np.concatenate([taken / masks, ratios], axis=1), axis=1)


def _greedy(values: np.ndarray) -> np.ndarray:
    """Sums over objects with 0, 1, ... n masks, each the one that adds most, [n + 1]."""
    best, sums = np.zeros(values.shape[1]), np.zeros(len(values) + 1)
    for k in range(1, min(len(values), len(RANKS)) + 1):
        gains = np.maximum(values - best, 0).sum(axis=1)
        if not gains.any():
            break
        best = np.maximum(best, values[gains.argmax()])
        sums[k] = best.sum()
    return np.maximum.accumulate(sums)
