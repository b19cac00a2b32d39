"""Mask AP by mmdet's metric: of the ground truth itself, of nothing, and with the classes taken away."""

import json

import pytest
import torch

pytest.importorskip("mmdet")

import sp_fast.mmdet_plugin.metrics  # noqa: F401  (gives mmdet the ops it imports)

# isort: split
from mmdet.registry import METRICS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData

from sp_fast.data.coco import load_coco


def evaluate(scenes, kind, relabel=lambda label: label, keep=lambda annotation: True, classes=("cat", "dog")):
    """The metric's values for predictions that are the ground truth, changed."""
    metric = METRICS.build({"type": kind, "ann_file": str(scenes / "masks.json"), "_scope_": "mmdet"})
    metric.dataset_meta = {"classes": classes}
    coco = load_coco(scenes / "masks.json")
    for image in coco["images"]:
        kept = [a for a in coco["annotations"] if a["image_id"] == image["id"] and keep(a)]
        labels = [relabel({3: 0, 8: 1}[a["category_id"]]) for a in kept]
        sample = DetDataSample(
            metainfo={"img_id": image["id"], "ori_shape": (image["height"], image["width"])}
        ).to_dict()
        sample["pred_instances"] = InstanceData(
            bboxes=torch.tensor([a["bbox"] for a in kept], dtype=torch.float32).reshape(-1, 4),
            scores=torch.full((len(kept),), 0.9),
            labels=torch.tensor(labels, dtype=torch.int64),
            masks=[dict(a["segmentation"]) for a in kept],
        )
        metric.process({}, [sample])
    return metric.evaluate(size=len(coco["images"]))


def test_ground_truth_has_ap_one_and_its_half_less(scenes):
    assert evaluate(scenes, "InstanceMetric")["coco/segm_mAP"] == 1
    half = evaluate(scenes, "InstanceMetric", keep=lambda a: a["category_id"] == 3)
    assert half["coco/segm_mAP"] == 0.5


def test_wrong_classes_count_unless_class_agnostic(scenes):
    assert evaluate(scenes, "InstanceMetric", relabel=lambda label: 1 - label)["coco/segm_mAP"] == 0
    agnostic = evaluate(scenes, "ClassAgnosticCocoMetric", relabel=lambda label: 1 - label)
    assert agnostic["class_agnostic/segm_mAP"] == 1


@pytest.mark.parametrize(
    ("kind", "key"),
    [("InstanceMetric", "coco/segm_mAP"), ("ClassAgnosticCocoMetric", "class_agnostic/segm_mAP")],
)
def test_no_prediction_at_all_is_ap_zero(scenes, kind, key):
    values = evaluate(scenes, kind, keep=lambda a: False)
    assert values[key] == 0
    assert values.keys() == evaluate(scenes, kind).keys()


def test_classes_are_matched_by_name(scenes):
    swapped = evaluate(scenes, "InstanceMetric", relabel=lambda label: 1 - label, classes=("dog", "cat"))
    assert swapped["coco/segm_mAP"] == 1


def test_two_metrics_on_the_same_samples_do_not_disturb_each_other(scenes):
    path = scenes / "masks.json"
    coco = load_coco(path)
    metrics = [
        METRICS.build({"type": kind, "ann_file": str(path), "_scope_": "mmdet"})
        for kind in ("ClassAgnosticCocoMetric", "InstanceMetric")
    ]
    for metric in metrics:
        metric.dataset_meta = {"classes": ("cat", "dog")}
    for image in coco["images"]:
        own = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
        sample = {"img_id": image["id"], "ori_shape": (image["height"], image["width"])}
        sample["pred_instances"] = InstanceData(
            bboxes=torch.tensor([a["bbox"] for a in own], dtype=torch.float32).reshape(-1, 4),
            scores=torch.full((len(own),), 0.9),
            labels=torch.tensor([{3: 0, 8: 1}[a["category_id"]] for a in own], dtype=torch.int64),
            masks=[dict(a["segmentation"]) for a in own],
        )
        for metric in metrics:
            metric.process({}, [sample])
    values = {}
    for metric in metrics:
        values |= metric.evaluate(size=len(coco["images"]))
    assert values["class_agnostic/segm_mAP"] == 1
    assert values["coco/segm_mAP"] == 1


def test_class_agnostic_data_set_needs_its_metric(scenes):
    with pytest.raises(ValueError, match=r"\['object'\] are not categories .*ClassAgnosticCocoMetric"):
        evaluate(scenes, "InstanceMetric", relabel=lambda label: 0, classes=("object",))
    agnostic = evaluate(scenes, "ClassAgnosticCocoMetric", relabel=lambda label: 0, classes=("object",))
    assert agnostic["class_agnostic/segm_mAP"] == 1


def test_annotation_file_is_checked(scenes):
    path = scenes / "masks.json"
    coco = json.loads(path.read_text())
    coco["annotations"][0]["category_id"] = 99
    path.write_text(json.dumps(coco))
    with pytest.raises(ValueError, match=r"masks\.json: annotation 5 has category_id 99"):
        evaluate(scenes, "InstanceMetric")
