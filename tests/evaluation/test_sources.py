"""Results, masks and models as detections, and what does not fit the annotations."""

import json

import pytest

from sp_fast.evaluation import evaluate, predict_detections, read_detections
from tests.evaluation.models import Oracle


def saved(value, tmp_path):
    path = tmp_path / "found.json"
    path.write_text(json.dumps(value))
    return path


def as_coco(truth, results, categories=None):
    """The results as a COCO-format file with ids of its own."""
    images = [dict(info, id=100 + info["id"]) for info in truth["images"][::-1]]
    annotations = [dict(one, id=k, image_id=100 + one["image_id"]) for k, one in enumerate(results, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories or truth["categories"]}


def as_objects(coco):
    """The same with the one category of `sp-fast propose`."""
    annotations = [dict(one, category_id=1) for one in coco["annotations"]]
    return dict(coco, annotations=annotations, categories=[{"id": 1, "name": "object"}])


def test_results_and_a_coco_file_of_them_are_the_same(truth, results, tmp_path):
    listed = read_detections(saved(results, tmp_path), truth)
    assert listed.entries == results
    assert not listed.any_object
    in_file = read_detections(saved(as_coco(truth, results), tmp_path), truth)
    keys = ("image_id", "category_id", "score", "segmentation", "bbox")
    assert in_file.entries == [{key: one[key] for key in keys} for one in results]


def test_categories_of_a_coco_file_are_matched_by_name(truth, results, tmp_path):
    coco = as_coco(truth, results)
    coco["categories"] = [dict(one, id=50 - one["id"]) for one in coco["categories"]]
    coco["annotations"] = [dict(one, category_id=50 - one["category_id"]) for one in coco["annotations"]]
    found = read_detections(saved(coco, tmp_path), truth)
    assert [one["category_id"] for one in found.entries] == [one["category_id"] for one in results]


def test_masks_without_classes_are_compared_without_classes(truth, results, tmp_path):
    coco = as_objects(as_coco(truth, results))
    found = read_detections(saved(coco, tmp_path), truth)
    assert found.any_object
    assert "one class for all objects" in found.notes[0]
    report = evaluate(truth, found)
    assert report.class_agnostic == "merged"
    wanted = evaluate(truth, read_detections(saved(results, tmp_path), truth), class_agnostic="merged")
    for kind, values in report.overall.items():
        assert values == pytest.approx(wanted.overall[kind], nan_ok=True)


def test_images_that_only_one_of_both_has_are_told(truth, results, tmp_path):
    coco = as_coco(truth, results)
    gone = coco["images"].pop(0)["id"]
    coco["annotations"] = [one for one in coco["annotations"] if one["image_id"] != gone]
    coco["images"].append({"id": 1, "file_name": "other.png", "height": 9, "width": 9})
    found = read_detections(saved(coco, tmp_path), truth)
    assert [note.split(" ", 1)[0] for note in found.notes] == ["1", "1"]
    assert "1 of 6 annotated images are not in" in found.notes[0]
    assert "images of" in found.notes[1]
    assert all(one["image_id"] != gone - 100 for one in found.entries)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda one: one.pop("score"), "result 2 lacks the key 'score'"),
        (lambda one: one.update(score="high"), "result 2 has the score 'high': expected a number"),
        (lambda one: one.update(image_id=99), "1 of .* results for other images, such as image_id 99"),
        (lambda one: one.update(category_id=99), "1 results of others, such as category_id 99; --class-ag"),
        (lambda one: one.pop("segmentation"), "result 2 lacks the key 'segmentation'"),
        (
            lambda one: one["segmentation"].update(size=[1, 2]),
            r"result 2 has a bad segmentation: .* size \[1, 2\], but its image is \[96, 96\]",
        ),
        (lambda one: one["segmentation"].update(counts="00"), "do not cover 9216 pixels"),
        (lambda one: one.update(segmentation=[[1, 2, 3]]), "result 2 has a bad segmentation: expected poly"),
    ],
)
def test_results_that_do_not_fit(truth, results, tmp_path, change, message):
    change(results[2])
    with pytest.raises(ValueError, match=message):
        read_detections(saved(results, tmp_path), truth)


@pytest.mark.parametrize("box", [[1, 2, 3], [1, 2, 3, None], "box"])
def test_boxes_that_do_not_fit(truth, results, tmp_path, box):
    boxes = [{key: value for key, value in one.items() if key != "segmentation"} for one in results]
    assert not read_detections(saved(boxes, tmp_path), truth).has_masks
    boxes[0]["bbox"] = box
    with pytest.raises(ValueError, match=r"result 0 has a bad bbox: expected \[x, y, width, height\]"):
        read_detections(saved(boxes, tmp_path), truth)


def test_coco_files_that_do_not_fit(truth, results, tmp_path):
    coco = as_coco(truth, results)
    with pytest.raises(ValueError, match="annotation 1 has the score None: expected a number in 'score'"):
        read_detections(saved(truth, tmp_path), truth)
    images = [dict(info, file_name=f"other/{info['file_name']}") for info in coco["images"]]
    with pytest.raises(ValueError, match=r"got other images \(such as other/"):
        read_detections(saved(dict(coco, images=images), tmp_path), truth)
    categories = [dict(one, name=f"my {one['name']}") for one in coco["categories"]]
    with pytest.raises(ValueError, match=r"classes of the annotations \(.*\), got my .*--class-agnostic"):
        read_detections(saved(dict(coco, categories=categories), tmp_path), truth)
    found = read_detections(saved(dict(coco, categories=categories), tmp_path), truth, ignore_classes=True)
    assert len(found.entries) == len(results)
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ValueError, match=r"bad\.json: not a JSON file"):
        read_detections(tmp_path / "bad.json", truth)
    with pytest.raises(FileNotFoundError, match="no such file of results"):
        read_detections(tmp_path / "none.json", truth)


def test_a_model_of_the_same_classes(truth, scenes):
    calls = []
    found = predict_detections(
        Oracle(truth), truth, scenes / "validation", progress=lambda *numbers: calls.append(numbers)
    )
    assert calls == [(0, 6), (4, 6), (6, 6)]
    report = evaluate(truth, found)
    assert report.overall["masks"]["mAP"] == pytest.approx(1)
    assert report.overall["boxes"]["mAP"] == pytest.approx(1)
    assert not report.class_agnostic
    assert {one.f1 for one in report.per_image} == {1.0}


def test_a_pretrained_model_has_one_class_for_all_objects(truth, scenes):
    found = predict_detections(Oracle(truth, lambda name: "object"), truth, scenes / "validation")
    assert found.any_object
    assert evaluate(truth, found).overall["masks"]["mAP"] == pytest.approx(1)


def test_classes_that_only_the_model_has_are_left_out(truth, scenes):
    model = Oracle(truth)
    kept = truth["categories"][0]["id"]
    annotations = [one for one in truth["annotations"] if one["category_id"] == kept]
    fewer = dict(truth, categories=truth["categories"][:1], annotations=annotations)
    found = predict_detections(model, fewer, scenes / "validation")
    assert {one["category_id"] for one in found.entries} == {kept}
    assert evaluate(fewer, found).overall["masks"]["mAP"] == pytest.approx(1)


def test_a_model_of_other_classes_or_sizes(truth, scenes):
    with pytest.raises(ValueError, match=r"expected the model to have the classes .*, got my .*"):
        predict_detections(Oracle(truth, "my {}".format), truth, scenes / "validation")
    images = [dict(info, width=90) for info in truth["images"]]
    with pytest.raises(ValueError, match=r"expected 96 x 90 pixels .* got an image of 96 x 96"):
        predict_detections(Oracle(truth), dict(truth, images=images), scenes / "validation")
