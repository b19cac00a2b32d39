"""The numbers of a report, the worst images, and the page."""

import dataclasses
import io
import json
import math
import re

import pytest
from rich.console import Console

from sp_fast.data.evaluation import evaluate_coco
from sp_fast.evaluation import Detections, evaluate, evaluate_results
from sp_fast.evaluation.page import page, print_report
from sp_fast.evaluation.per_image import image_scores
from sp_fast.evaluation.report import largest_difference
from tests.data.test_evaluation import rows


@pytest.fixture
def report(truth, results):
    return evaluate(truth, Detections(results))


def test_values_are_those_of_evaluate_coco(truth, results, report):
    for kind, iou_type in (("masks", "segm"), ("boxes", "bbox")):
        wanted = evaluate_coco(truth, results, iou_type, per_class=True)
        by_class = wanted.pop("per_class")
        assert report.overall[kind] == pytest.approx(wanted, nan_ok=True)
        for name, values in report.per_class.items():
            assert values[kind] == pytest.approx(by_class[name], nan_ok=True)
    assert sum(one["objects"] for one in report.per_class.values()) == len(truth["annotations"])


@pytest.mark.parametrize("class_agnostic", [False, "merged", "no_categories"])
def test_pycocotools_confirms_the_report(truth, results, class_agnostic):
    one, other = (
        evaluate(truth, Detections(results), class_agnostic=class_agnostic, evaluator=evaluator)
        for evaluator in ("hotcoco", "pycocotools")
    )
    assert largest_difference(one, other) < 1e-12
    assert bool(one.per_class) == (not class_agnostic)
    changed = dict(one.overall["boxes"], mAP_s=math.nan)
    assert largest_difference(one, dataclasses.replace(other, overall={**one.overall, "boxes": changed})) > 1


def test_masks_without_boxes_get_tight_ones_and_boxes_are_enough(truth, results):
    masks = [{key: value for key, value in one.items() if key != "bbox"} for one in results]
    both = evaluate(truth, Detections(results))
    assert evaluate(truth, Detections(masks)).overall["boxes"] == pytest.approx(
        both.overall["boxes"], nan_ok=True
    )
    boxes = [{key: value for key, value in one.items() if key != "segmentation"} for one in results]
    alone = evaluate(truth, Detections(boxes))
    assert alone.overall.keys() == {"boxes"}
    assert alone.overall["boxes"] == pytest.approx(both.overall["boxes"], nan_ok=True)


@pytest.fixture
def table6(scenes, truth, results, tmp_path):
    """Results like FreeSOLO's: one class, boxes that are not xywh; and the values of the masks' boxes."""
    one_class = [{**one, "category_id": 1} for one in results]
    boxes = [{key: value for key, value in one.items() if key != "segmentation"} for one in one_class]
    for one in one_class:
        x, y, w, h = one["bbox"]
        one["bbox"] = [x, y, x + w, y + h]
    for name, value in (("masks", one_class), ("boxes", boxes)):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    wanted = evaluate_coco(truth, boxes, "bbox", class_agnostic="no_categories", evaluator="pycocotools")
    return scenes / "validation.json", tmp_path, wanted


@pytest.mark.parametrize("name", ["masks", "boxes"])
def test_class_agnostic_boxes_of_masks_and_of_results_with_boxes_only(table6, name):
    annotations, folder, wanted = table6
    options = {"what": "bbox", "class_agnostic": "no_categories"}
    found = evaluate_results(folder / f"{name}.json", annotations, boxes_from_masks=True, **options)
    assert found == pytest.approx(wanted, nan_ok=True)
    assert 0.05 < found["mAP"] < 0.95
    # Without the masks' boxes, FreeSOLO's are taken for xywh.
    assert (evaluate_results(folder / f"{name}.json", annotations, **options)["mAP"] == found["mAP"]) == (
        name == "boxes"
    )


def test_results_by_masks(table6, truth, results):
    annotations, folder, _ = table6
    found = evaluate_results(folder / "masks.json", annotations, class_agnostic="merged")
    wanted = evaluate(truth, Detections(results), class_agnostic="merged").overall["masks"]
    assert found == pytest.approx(wanted, nan_ok=True)
    with pytest.raises(ValueError, match=r"what: .*boxes.json has boxes only"):
        evaluate_results(folder / "boxes.json", annotations, class_agnostic="merged")


def test_f1_of_an_image_by_hand():
    def entry(category, first, count, **rest):
        box = [0, first, 16, count]
        return {
            "image_id": 1,
            "category_id": category,
            "segmentation": rows(first, count),
            "bbox": box,
        } | rest

    truth = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 16, "width": 16} for i in (1, 2)],
        "annotations": [entry(1, 0, 4), entry(2, 8, 4), entry(1, 4, 2), entry(1, 0, 16, iscrowd=1)],
    }
    # The best finds the first object, the second the same again, the third has a wrong class, the last is
    # one detection too many.
    found = [
        *(entry(1, 0, 4, score=0.9), entry(1, 0, 3, score=0.8), entry(1, 8, 4, score=0.7)),
        entry(1, 4, 2, score=0.1),
    ]
    for masks in (True, False):
        (score,) = image_scores(truth, found, masks=masks, same_class=True)
        assert (score.file_name, score.matched) == ("1.png", [0, -1, -1])
        assert score.f1 == pytest.approx(2 / 6)
        (score,) = image_scores(truth, found, masks=masks, same_class=False)
        assert score.matched == [0, -1, 1]
        assert score.f1 == pytest.approx(4 / 6)
    (score,) = image_scores(truth, [], masks=True, same_class=True)
    assert score.f1 == 0


def test_report_as_json_has_no_nan(report):
    written = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert written["masks"]["mAP"] == report.overall["masks"]["mAP"]
    assert written["masks"]["mAP_l"] is None
    assert len(written["precision"]["boxes"]) == 10
    assert [one["f1"] for one in written["per_image"]] == sorted(one["f1"] for one in written["per_image"])


def test_table_fits_a_terminal(truth, report):
    console = Console(width=80, record=True, file=io.StringIO())
    print_report(report, console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "…" not in text
    assert all(one["name"] in text for one in truth["categories"] if one["name"] in report.per_class)
    assert f"{100 * report.overall['masks']['mAP']:.1f}" in text


def test_page_is_one_file_with_the_worst_images(scenes, report):
    pytest.importorskip("matplotlib")
    html = page(report, "Evaluation", scenes / "validation", "sp-fast evaluate", {"evaluated": "x.json"})
    worst = [one for one in report.per_image if one.f1 < 1]
    assert worst
    assert html.count("data:image/webp;base64,") == 2 * min(len(worst), 12)
    assert html.index(worst[0].file_name) < html.index(worst[-1].file_name)
    assert len(re.findall("<svg", html)) == 2
    assert "http" not in re.sub(r'"http://www.w3.org/[^"]*"', "", html)
    assert ">nan<" not in html


def test_page_without_images_or_objects(truth):
    pytest.importorskip("matplotlib")
    empty = evaluate(dict(truth, annotations=[]), Detections([]))
    html = page(empty, "Evaluation", None, "sp-fast evaluate", {})
    assert "<img" not in html
    assert "Worst images" not in html
