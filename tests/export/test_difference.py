"""Comparing the instances of two models."""

import numpy as np
import pytest

from sp_fast.export.difference import Difference, difference
from sp_fast.inference.instances import Instances

CLASSES = ("disc", "box")


def found(*instances):
    """Instances of (rows, columns, score, label): a rectangle of pixels from 0, in 100 x 100."""
    masks = np.zeros((len(instances), 100, 100), dtype=bool)
    for mask, (rows, columns, _, _) in zip(masks, instances, strict=True):
        mask[rows, columns] = True
    scores = np.array([one[2] for one in instances], dtype=np.float32)
    return Instances.from_masks(masks, scores, np.array([one[3] for one in instances], dtype=int), CLASSES)


DISC, BOX = (slice(0, 50), slice(0, 50), 0.9, 0), (slice(20, 60), slice(40, 90), 0.5, 1)


def test_equal_instances_do_not_differ():
    assert difference(found(DISC, BOX), found(BOX, DISC)) == Difference(0.0, 0.0)
    assert difference(found(), found()) == Difference(0.0, 0.0)


def test_order_of_almost_equal_scores_does_not_matter():
    other = (slice(60, 90), slice(60, 90), 0.9, 0)
    swapped = found((*DISC[:2], 0.8999, 0), other)
    result = difference(found(DISC, (*other[:2], 0.8999, 0)), swapped)
    assert result.masks == 0
    assert result.scores == pytest.approx(1e-4, rel=1e-2)


def test_differing_pixels_are_counted_over_all_masks():
    smaller = (slice(0, 50), slice(0, 48), 0.9, 0)
    assert difference(found(DISC, BOX), found(smaller, BOX)).masks == pytest.approx(100 / (2 * 100 * 100))


def test_a_score_that_differs_is_seen():
    assert difference(found(DISC), found((*DISC[:3], 0))).tolerable
    assert not difference(found(DISC), found((*DISC[:2], 0.89, 0))).tolerable


@pytest.mark.parametrize("other", [found(DISC), found((*DISC[:3], 1), BOX), found(BOX), found()])
def test_a_lost_instance_or_another_class_is_seen(other):
    assert not difference(found(DISC, BOX), other).tolerable
    assert not difference(other, found(DISC, BOX)).tolerable


def test_rounding_may_decide_which_instance_is_the_last():
    last = (slice(70, 90), slice(0, 50), 0.5002, 0)
    assert difference(found(DISC, BOX), found(DISC, last)).tolerable
