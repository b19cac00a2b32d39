"""Recall by rank: COCO's average recall, and the orders of masks, on IoUs that are known."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest

from sp_fast.data.coco import load_coco
from sp_fast.data.evaluation import evaluate_coco
from sp_fast.evaluation import read_detections
from sp_fast.proposals.ranked import read_ranked
from sp_fast.proposals.recall import NEVER, RANKS, _orders, found_at, measure_recall
from tests.proposals.test_scores import Box, coco


def near(boxes: list[Box], count: int, rng: np.random.Generator) -> list[Box]:
    """Boxes near the given ones, some of them copies."""
    found = []
    for k in rng.integers(0, len(boxes), count):
        x, y, w, h = boxes[k]
        dx, dy, dw, dh = rng.integers(-8, 9, 4) * rng.integers(0, 2)
        found.append((max(x + dx, 0), max(y + dy, 0), max(w + dw, 1), max(h + dh, 1)))
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Proposals, 0 to 130 in an image and with equal scores, and overlapping objects, with crowds."""
    rng = np.random.default_rng(0)
    objects, crowds, masks, scores = {}, {}, {}, {}
    for number, count in enumerate((0, 3, 15, 60, 130)):
        name = f"{number}.jpg"
        sides = rng.integers(8, 60, (6, 2))
        objects[name] = [(*rng.integers(0, 130, 2), *side) for side in sides]
        crowds[name] = [(*rng.integers(0, 130, 2), 60, 60)]
        masks[name] = near([*objects[name], *crowds[name]], count, rng)
        scores[name] = (rng.integers(0, 20, count) / 20).tolist()
    folder = tmp_path_factory.mktemp("recall")
    return (
        coco(folder / "masks.json", masks, scores=scores),
        coco(folder / "objects.json", objects, crowds=crowds),
    )


@pytest.mark.parametrize("evaluator", ["hotcoco", "pycocotools"])
def test_average_recall_is_that_of_coco(files: tuple[Path, Path], evaluator: str) -> None:
    masks, objects = files
    truth = load_coco(objects)
    found = measure_recall(
        read_ranked(masks), read_ranked(objects), [image["file_name"] for image in truth["images"]]
    )
    entries = read_detections(masks, truth).entries
    first = {image["id"]: 0 for image in truth["images"]}
    twenty = []
    for one in sorted(entries, key=lambda one: -one["score"]):
        first[one["image_id"]] += 1
        if first[one["image_id"]] <= 20:
            twenty.append(one)
    values = evaluate_coco(truth, entries, class_agnostic="no_categories", evaluator=evaluator)
    of_twenty = evaluate_coco(truth, twenty, class_agnostic="no_categories", evaluator=evaluator)
    expected = {10: values["AR@10"], 20: of_twenty["AR@100"], 100: values["AR@100"]}
    assert 0 < expected[10] < expected[20] < expected[100] < 1
    assert found.average_recall == pytest.approx(expected, abs=1e-12)


def test_coverage_and_images(files: tuple[Path, Path]) -> None:
    masks, objects = map(read_ranked, files)
    found = measure_recall(masks, objects, objects.images)
    assert list(found.coverage) == ["first 10", "first 20", "first 40", "first 100", "all"]
    assert found.by_image["0.jpg"] == (0, 0)
    for key, one in found.coverage.items():
        assert one["all"].objects == 30
        if key != "all":
            k = int(key.split()[1]) - 1
            assert one["all"].mean_best_iou == pytest.approx(found.mean_best_iou.by_score[k])
            assert one["all"].above_half == pytest.approx(found.above_half.by_score[k])
    assert np.mean([one.all for one in found.by_image.values()]) == pytest.approx(
        found.coverage["all"]["all"].mean_best_iou
    )
    few = measure_recall(masks, objects, ["0.jpg", "1.jpg", "2.jpg"])
    assert list(few.coverage) == ["first 10", "all"]  # no image has more than 15


def test_masks_choose_in_their_order() -> None:
    iou = np.array([[0.6, 0.55], [0.9, 0.0], [0.0, 0.52]])
    at = found_at(iou)
    assert at[:, 0].tolist() == [0, 0, 0, *[1] * 6, NEVER]
    assert at[:, 1].tolist() == [2, *[NEVER] * 9]


def test_orders_of_masks() -> None:
    rng = np.random.default_rng(1)
    values = rng.random((5, 3)) * (rng.random((5, 3)) > 0.4)
    by_score, chance, perfect = _orders(values)
    for count in range(1, 6):
        assert by_score[count - 1] == pytest.approx(values[:count].max(axis=0).sum())
        sums = [values[list(some)].max(axis=0).sum() for some in itertools.combinations(range(5), count)]
        assert chance[count - 1] == pytest.approx(np.mean(sums))
        assert perfect[count - 1] <= max(sums) + 1e-12
        assert perfect[count - 1] >= (1 - 1 / math.e) * max(sums)
    assert perfect[0] == pytest.approx(values.sum(axis=1).max())
    for curve in (by_score, chance, perfect):
        assert len(curve) == len(RANKS)
        assert curve[4:] == pytest.approx(values.max(axis=0).sum())


def test_the_perfect_order_takes_what_adds_most() -> None:
    values = np.array([[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 0.9], [0.6, 0.0, 0.0]])
    assert _orders(values)[2, :4] == pytest.approx([1.0, 1.9, 2.0, 2.0])


def test_no_objects(tmp_path: Path) -> None:
    masks = read_ranked(coco(tmp_path / "p.json", {"a.jpg": [(0, 0, 9, 9)]}))
    found = measure_recall(masks, read_ranked(coco(tmp_path / "o.json", {"a.jpg": []})), ["a.jpg"])
    assert all(map(math.isnan, found.average_recall.values()))
    assert np.isnan(found.above_half.chance).all()
    assert found.coverage["all"]["all"].objects == 0
    assert found.by_image == {}
