"""The metrics of mmdet runs: the ground truth itself, nothing, other classes, other forms of masks, files."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")

import sp_fast.mmdet_plugin.metrics  # noqa: F401  (registers them)

# isort: split
from mmdet.registry import METRICS
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from pycocotools import mask as coco_mask

from sp_fast.data.coco import load_coco

LABELS = {3: 0, 8: 1}


def samples(coco, relabel=lambda label: label, keep=lambda annotation: True, masks=lambda rles: rles):
    """Predictions that are the ground truth, changed."""
    for image in coco["images"]:
        kept = [a for a in coco["annotations"] if a["image_id"] == image["id"] and keep(a)]
        boxes = torch.tensor([a["bbox"] for a in kept], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        sample = DetDataSample(
            metainfo={"img_id": image["id"], "ori_shape": (image["height"], image["width"])}
        ).to_dict()
        sample["pred_instances"] = InstanceData(
            bboxes=boxes,
            scores=torch.full((len(kept),), 0.9),
            labels=torch.tensor([relabel(LABELS[a["category_id"]]) for a in kept], dtype=torch.int64),
            masks=masks([dict(a["segmentation"]) for a in kept]),
        )
        yield sample


def build(scenes, kind, classes=("cat", "dog"), **options):
    metric = METRICS.build({"type": kind, "ann_file": str(scenes / "masks.json"), **options})
    metric.dataset_meta = {"classes": classes}
    return metric


def evaluate(scenes, kind, classes=("cat", "dog"), options=None, **changes):
    """The metric's values for predictions that are the ground truth, changed."""
    metric = build(scenes, kind, classes, **(options or {}))
    coco = load_coco(scenes / "masks.json")
    for sample in samples(coco, **changes):
        metric.process({}, [sample])
    return metric.evaluate(size=len(coco["images"]))


def test_ground_truth_has_ap_one_and_its_half_less(scenes):
    whole = evaluate(scenes, "InstanceMetric")
    assert whole["coco/segm_mAP"] == pytest.approx(1)
    assert whole["coco/segm_AR@100"] == pytest.approx(1)
    assert whole["coco/segm_best_iou"] == pytest.approx(1)
    half = evaluate(scenes, "InstanceMetric", keep=lambda a: a["category_id"] == 3)
    assert half["coco/segm_mAP"] == pytest.approx(0.5)


def test_values_without_objects_are_left_out(scenes):
    sizes = {name[-1] for name in evaluate(scenes, "InstanceMetric") if name[-2] == "_" and name[-1] in "sml"}
    assert sizes == {"s"}  # no object of the scenes is larger


def test_wrong_classes_count_unless_class_agnostic(scenes):
    def swap(label):
        return 1 - label

    assert evaluate(scenes, "InstanceMetric", relabel=swap)["coco/segm_mAP"] == 0
    agnostic = evaluate(scenes, "ClassAgnosticCocoMetric", relabel=swap)
    assert agnostic["class_agnostic/segm_mAP"] == pytest.approx(1)


def test_masks_of_a_model_are_encoded(scenes):
    def dense(rles):
        masks = [coco_mask.decode(rle) for rle in rles]
        return torch.from_numpy(np.stack(masks)).bool() if masks else torch.zeros(0, 32, 48, dtype=torch.bool)

    assert evaluate(scenes, "InstanceMetric", masks=dense) == evaluate(scenes, "InstanceMetric")


def test_boxes_are_measured_beside_masks(scenes):
    both = evaluate(scenes, "InstanceMetric", options={"metric": ["segm", "bbox"]})
    assert both["coco/bbox_mAP"] == pytest.approx(1)
    assert both["coco/segm_mAP"] == pytest.approx(1)


def test_unknown_metric_and_missing_masks_are_errors(scenes):
    with pytest.raises(ValueError, match="metric must be 'segm', 'bbox' or a list of them, got 'proposal'"):
        build(scenes, "InstanceMetric", metric="proposal")
    sample = next(samples(load_coco(scenes / "masks.json")))
    del sample["pred_instances"].masks
    with pytest.raises(ValueError, match="the model predicts no masks"):
        build(scenes, "InstanceMetric").process({}, [sample])
    build(scenes, "InstanceMetric", metric="bbox").process({}, [sample])


@pytest.mark.parametrize(
    ("kind", "prefix"), [("InstanceMetric", "coco"), ("ClassAgnosticCocoMetric", "class_agnostic")]
)
def test_no_prediction_at_all_is_ap_zero(scenes, kind, prefix):
    options = {"outfile_prefix": str(scenes / "out" / "found")}
    full = evaluate(scenes, kind, options=options)
    written = json.loads((scenes / "out" / "found.segm.json").read_text())
    assert len(written) == 5
    empty = evaluate(scenes, kind, options=options, keep=lambda a: False)
    assert empty[f"{prefix}/segm_mAP"] == 0
    assert empty.keys() == full.keys()
    assert json.loads((scenes / "out" / "found.segm.json").read_text()) == []


def test_predictions_are_written_with_the_ids_of_the_annotations(scenes):
    coco = load_coco(scenes / "masks.json")
    evaluate(scenes, "InstanceMetric", options={"outfile_prefix": str(scenes / "found")})
    written = json.loads((scenes / "found.segm.json").read_text())
    keys = ("image_id", "category_id", "segmentation")
    wanted = [{key: one[key] for key in keys} for one in coco["annotations"]]
    got = [{key: one[key] for key in keys} for one in written]
    assert sorted(got, key=repr) == sorted(wanted, key=repr)
    assert [one["score"] for one in written] == pytest.approx([0.9] * 5)


def test_classes_are_matched_by_name(scenes):
    swapped = evaluate(scenes, "InstanceMetric", relabel=lambda label: 1 - label, classes=("dog", "cat"))
    assert swapped["coco/segm_mAP"] == pytest.approx(1)


def test_two_metrics_on_the_same_samples_do_not_disturb_each_other(scenes):
    coco = load_coco(scenes / "masks.json")
    metrics = [build(scenes, kind) for kind in ("ClassAgnosticCocoMetric", "InstanceMetric")]
    for sample in samples(coco):
        for metric in metrics:
            metric.process({}, [sample])
    values = {}
    for metric in metrics:
        values |= metric.evaluate(size=len(coco["images"]))
    assert values["class_agnostic/segm_mAP"] == pytest.approx(1)
    assert values["coco/segm_mAP"] == pytest.approx(1)


def test_only_the_classes_of_the_data_set_count(scenes):
    cats = evaluate(scenes, "InstanceMetric", classes=("cat",), keep=lambda a: a["category_id"] == 3)
    assert cats["coco/segm_mAP"] == pytest.approx(1)
    assert cats["coco/segm_best_iou"] == pytest.approx(1)


def test_class_agnostic_data_set_needs_its_metric(scenes):
    with pytest.raises(ValueError, match=r"\['object'\] are not categories .*ClassAgnosticCocoMetric"):
        evaluate(scenes, "InstanceMetric", relabel=lambda label: 0, classes=("object",))
    agnostic = evaluate(scenes, "ClassAgnosticCocoMetric", relabel=lambda label: 0, classes=("object",))
    assert agnostic["class_agnostic/segm_mAP"] == pytest.approx(1)


def test_annotation_file_is_checked(scenes):
    path = scenes / "masks.json"
    coco = json.loads(path.read_text())
    coco["annotations"][0]["category_id"] = 99
    path.write_text(json.dumps(coco))
    with pytest.raises(ValueError, match=r"masks\.json: annotation 5 .*category_id: expected .*, got 99"):
        evaluate(scenes, "InstanceMetric")


def test_only_the_images_that_were_evaluated_count(scenes):
    metric = build(scenes, "InstanceMetric")
    coco = load_coco(scenes / "masks.json")
    evaluated = {one["image_id"] for one in coco["annotations"]}
    first = min(evaluated)
    assert len(evaluated) > 1
    for sample in samples(coco):
        if sample["img_id"] == first:
            metric.process({}, [sample])
    assert metric.evaluate(size=1)["coco/segm_mAP"] == pytest.approx(1)
