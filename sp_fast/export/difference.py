"""How far the instances of two models are apart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment

from sp_fast.data.rle import rle_areas, run_lengths
from sp_fast.inference.instances import Instances

MASKS, SCORES = 1e-3, 1e-3  # largest tolerated differences


class Difference(NamedTuple):
    """Largest differences over images.

    Attributes:
        masks: share of the pixels of all masks of an image that differ.
        scores: difference of the scores of two instances that belong together.
    """

    masks: float
    scores: float

    @property
    def tolerable(self) -> bool:
        """Whether both are within MASKS and SCORES."""
        return self.masks <= MASKS and self.scores <= SCORES


def largest(differences: Iterable[Difference]) -> Difference:
    """The largest of each."""
    masks, scores = zip(*differences, strict=True)
    return Difference(max(masks), max(scores))


def difference(expected: Instances, found: Instances) -> Difference:
    """Compares the instances of one image, of two models of the same classes.

    Instances of equal labels are paired so that their masks differ least, because rounding changes the order
    of almost equal scores. One without a partner counts with its whole mask, unless its score is the
    lowest of both lists: then rounding decided which one was the last.
    """
    pixels = expected.masks[0].size if len(expected) else found.masks[0].size if len(found) else 1
    masks, others = run_lengths(expected.masks), run_lengths(found.masks)
    areas, other_areas = rle_areas(masks), rle_areas(others)
    apart = _differing_pixels(masks, others, areas, other_areas)
    gap = np.abs(expected.scores[:, None].astype(float) - found.scores)
    alike = expected.labels[:, None] == found.labels
    # Scores decide between equal masks. Two that do not belong together cost more than any that do.
    rows, columns = linear_sum_assignment(np.where(alike, apart / pixels + gap, 1e3))
    paired = alike[rows, columns]
    rows, columns = rows[paired], columns[paired]
    alone = [
        *_alone(expected.scores, areas, rows, found.scores),
        *_alone(found.scores, other_areas, columns, expected.scores),
    ]
    share = apart[rows, columns].sum() / (pixels * max(len(rows), 1))
    return Difference(
        float(max([share, *(area / pixels for area in alone)])), float(gap[rows, columns].max(initial=0.0))
    )


def _differing_pixels(
    masks: list[dict], others: list[dict], areas: np.ndarray, other_areas: np.ndarray
) -> np.ndarray:
    """Pixels in one of two masks but not in both, for each pair of masks."""
    if not masks or not others:
        return np.zeros((len(masks), len(others)))
    iou = coco_mask.iou(masks, others, [0] * len(others))
    total = areas[:, None] + other_areas
    return np.rint(total * (1 - iou) / (1 + iou))


def _alone(scores: np.ndarray, areas: np.ndarray, paired: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Areas of the instances without a partner, except those with the lowest score of both lists."""
    left: np.ndarray = np.ones(len(scores), dtype=bool)
    left[paired] = False
    if len(scores) and len(others):
        lowest = np.array([scores.min(), others.min()])
        left &= np.abs(scores[:, None] - lowest).max(axis=1) > SCORES
    return areas[left]
