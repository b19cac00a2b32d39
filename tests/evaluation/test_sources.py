"""Results, masks and models as detections, and what does not fit the annotations."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from sp_fast.data.coco import load_coco
from sp_fast.data.rle import to_rle
from sp_fast.evaluation import evaluate, predict_detections, read_detections
from sp_fast.evaluation.per_image import pictures
from sp_fast.inference import Instances
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
    missing, other = found.notes
    assert missing.startswith("1 of 6 annotated images are not in")
    assert other.startswith("Left out: 1 image of ")
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
            r"result 2 has a bad segmentation: expected .* size \[96, 96\] .*, got size \[1, 2\]",
        ),
        (lambda one: one["segmentation"].update(counts="00"), "expected counts of 9216 pixels in all"),
        (lambda one: one.update(segmentation=[[1, 2, 3]]), "result 2 has a bad segmentation: .* even number"),
        (lambda one: one.update(segmentation=[[0, 0, 1e9, 0, 1e9, 1e9]]), "expected finite coordinates"),
        (lambda one: one["segmentation"].update(size=3), "result 2 has a bad segmentation: .*, got size 3"),
        (lambda one: one["segmentation"].update(counts=["a"]), "expected counts of whole numbers"),
        (lambda one: one.update(image_id=[1]), r"result 2 has a bad image_id: .*, got \[1\]"),
        (lambda one: one.update(category_id={}), "result 2 has a bad category_id: expected .*, got {}"),
        (lambda one: one.update(bbox=None), "result 2 has a bad bbox: expected four .*, got None"),
        (lambda one: one.update(bbox=[1, 1, -5, 5]), r"result 2 has a bad bbox: .*, got \[1, 1, -5, 5\]"),
        (lambda one: one.update(score=10**400), "result 2 has the score .*: expected a number"),
    ],
)
def test_results_that_do_not_fit(truth, results, tmp_path, change, message):
    change(results[2])
    with pytest.raises(ValueError, match=message):
        read_detections(saved(results, tmp_path), truth)


def test_results_with_masks_must_all_have_them(truth, results, tmp_path):
    del results[0]["segmentation"]
    with pytest.raises(ValueError, match="result 0 lacks the key 'segmentation'"):
        read_detections(saved(results, tmp_path), truth)


def test_results_of_other_categories_without_classes(truth, results, tmp_path):
    results[2]["category_id"] = 99
    found = read_detections(saved(results, tmp_path), truth, ignore_classes=True)
    for protocol in ("merged", "no_categories"):
        report = evaluate(truth, found, class_agnostic=protocol)
        assert report.detections == len(results)


@pytest.mark.parametrize("box", [[1, 2, 3], [1, 2, 3, None], "box"])
def test_boxes_that_do_not_fit(truth, results, tmp_path, box):
    boxes = [{key: value for key, value in one.items() if key != "segmentation"} for one in results]
    assert not read_detections(saved(boxes, tmp_path), truth).has_masks
    boxes[0]["bbox"] = box
    with pytest.raises(ValueError, match=r"result 0 has a bad bbox: .* \[x, y, width, height\]"):
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
        Oracle(truth, scenes / "validation"),
        truth,
        scenes / "validation",
        progress=lambda *numbers: calls.append(numbers),
    )
    assert calls == [(0, 6), (4, 6), (6, 6)]
    report = evaluate(truth, found)
    assert report.overall["masks"]["mAP"] == pytest.approx(1)
    assert report.overall["boxes"]["mAP"] == pytest.approx(1)
    assert not report.class_agnostic
    assert {one.f1 for one in report.per_image} == {1.0}


def test_images_annotated_in_stored_pixels(tmp_path):
    exif = Image.Exif()
    exif[0x112] = 6  # turn by 90 degrees
    Image.new("RGB", (60, 40), "grey").save(tmp_path / "a.png", exif=exif)
    info = {"id": 1, "file_name": "a.png", "height": 40, "width": 60}
    corners = [[5, 5, 50, 5, 50, 30]]
    one = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": corners}
    coco = {"images": [info], "annotations": [one], "categories": [{"id": 1, "name": "leaf"}]}
    truth = load_coco(saved(coco, tmp_path))

    class Triangle:
        classes, batch_size = ("leaf",), 1

        def predict(self, images, *, threshold, top_k):
            assert [image.shape for image in images] == [(40, 60, 3)]
            mask = coco_mask.decode(to_rle(corners, 40, 60))[None].astype(bool)
            box, score = np.array([[5, 5, 50, 30]], np.float32), np.ones(1, np.float32)
            return [Instances(mask, box, score, np.zeros(1, np.int64), self.classes)]

    report = evaluate(truth, predict_detections(Triangle(), truth, tmp_path))
    assert report.overall["masks"]["mAP"] == pytest.approx(1)
    objects, _ = pictures(report.per_image[0], tmp_path)
    picture = Image.open(io.BytesIO(base64.b64decode(objects.split(",")[1])))
    assert picture.width > picture.height


def test_a_pretrained_model_has_one_class_for_all_objects(truth, scenes):
    found = predict_detections(
        Oracle(truth, scenes / "validation", lambda name: "object"), truth, scenes / "validation"
    )
    assert found.any_object
    assert evaluate(truth, found).overall["masks"]["mAP"] == pytest.approx(1)


def test_classes_that_only_the_model_has_are_left_out(truth, scenes):
    model = Oracle(truth, scenes / "validation")
    kept = truth["categories"][0]["id"]
    annotations = [one for one in truth["annotations"] if one["category_id"] == kept]
    fewer = dict(truth, categories=truth["categories"][:1], annotations=annotations)
    found = predict_detections(model, fewer, scenes / "validation")
    assert {one["category_id"] for one in found.entries} == {kept}
    assert evaluate(fewer, found).overall["masks"]["mAP"] == pytest.approx(1)


def test_a_model_of_other_classes_or_sizes(truth, scenes):
    with pytest.raises(ValueError, match=r"expected the model to have the classes .*, got my .*"):
        predict_detections(Oracle(truth, scenes / "validation", "my {}".format), truth, scenes / "validation")
    images = [dict(info, width=90) for info in truth["images"]]
    with pytest.raises(ValueError, match=r"expected 96 x 90 pixels .* got an image of 96 x 96"):
        predict_detections(
            Oracle(truth, scenes / "validation"), dict(truth, images=images), scenes / "validation"
        )
