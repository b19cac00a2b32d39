"""Values by size and class, against evaluate_coco on all images."""

import json

import numpy as np
import pytest

from sp_fast.data.coco import load_coco
from sp_fast.data.evaluation import evaluate_coco
from sp_fast.data.rle import run_lengths
from sp_fast.experiments.details import details

SIDE = 128


def rectangle(x, y, width, height):
    mask = np.zeros((1, SIDE, SIDE), bool)
    mask[0, y : y + height, x : x + width] = True
    return run_lengths(mask)[0]


@pytest.fixture
def files(tmp_path):
    """Three images: two small and one medium cat, a large dog, a crowd of birds; predictions partly right."""
    objects = [
        *((1, 4, (0, 0, 20, 20), 0), (1, 4, (60, 60, 20, 20), 0), (2, 4, (5, 5, 40, 40), 0)),
        *((2, 7, (10, 10, 100, 100), 0), (3, 9, (0, 0, 50, 50), 1)),
    ]
    annotations = [
        {"id": k, "image_id": image, "category_id": label, "segmentation": rectangle(*box), "iscrowd": crowd}
        for k, (image, label, box, crowd) in enumerate(objects, start=1)
    ]
    truth = {
        "images": [{"id": k, "file_name": f"{k}.png", "height": SIDE, "width": SIDE} for k in (1, 2, 3)],
        "annotations": annotations,
        "categories": [{"id": 4, "name": "cat"}, {"id": 7, "name": "dog"}, {"id": 9, "name": "bird"}],
    }
    found = [
        *((1, 4, 0.9, (0, 0, 20, 18)), (2, 4, 0.8, (5, 5, 30, 40)), (3, 4, 0.95, (70, 70, 30, 30))),
        *((2, 7, 0.7, (10, 10, 100, 80)), (1, 7, 0.3, (60, 60, 20, 20))),
    ]
    predicted = [
        {"image_id": image, "category_id": label, "score": score, "segmentation": rectangle(*box)}
        for image, label, score, box in found
    ]
    paths = tmp_path / "predictions.json", tmp_path / "truth.json"
    for path, content in zip(paths, (predicted, truth), strict=True):
        path.write_text(json.dumps(content))
    return paths


def test_sizes_have_the_values_of_the_evaluation_and_their_objects(files) -> None:
    predictions, annotations = files
    sizes = details(predictions, annotations, class_agnostic=False)["sizes"]
    values = evaluate_coco(load_coco(annotations), json.loads(predictions.read_text()))
    assert [entry["objects"] for entry in sizes.values()] == [2, 1, 1]
    for size in ("small", "medium", "large"):
        assert sizes[size]["AP"] == values[f"mAP_{size[0]}"]
        assert sizes[size]["AR"] == values[f"AR_{size[0]}"]


def test_the_mean_over_classes_is_the_value_of_all(files) -> None:
    """A cat predicted in an image without cats lowers the cats' AP: such images must count."""
    predictions, annotations = files
    classes = details(predictions, annotations, class_agnostic=False)["classes"]
    values = evaluate_coco(load_coco(annotations), json.loads(predictions.read_text()))
    assert {name: entry["objects"] for name, entry in classes.items()} == {"cat": 3, "dog": 1}
    for heading, name in (("AP", "mAP"), ("AP50", "mAP_50"), ("AR", "AR@100")):
        mean = sum(entry[heading] for entry in classes.values()) / 2
        assert mean == pytest.approx(values[name], abs=1e-12)
    assert 0 < classes["cat"]["AP50"] < 2 / 3


def test_one_class_for_all_objects(files) -> None:
    predictions, annotations = files
    found = details(predictions, annotations, class_agnostic=True)
    assert found["classes"] == {}
    # The second small cat is covered by a mask that was predicted as a dog.
    assert found["sizes"]["small"]["AR"] == pytest.approx((0.9 + 1) / 2, abs=0.06)


def test_sizes_without_objects_have_no_value(files) -> None:
    predictions, annotations = files
    truth = json.loads(annotations.read_text())
    truth["annotations"] = truth["annotations"][:2]
    annotations.write_text(json.dumps(truth))
    sizes = details(predictions, annotations, class_agnostic=False)["sizes"]
    assert sizes["large"] == {"objects": 0, "AP": None, "AR": None}
