"""AP by the study's own short way against the package's metric."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

pytest.importorskip("mmdet")

from sp_fast.data.coco import load_coco, save_coco
from sp_fast.mmdet_plugin.metrics import ClassAgnosticCocoMetric, InstanceMetric
from sp_fast.study.evaluation import average_precision, evaluate
from sp_fast.study.memory import load_images
from sp_fast.study.models import Normalizer, build_detector, load_settings
from sp_fast.study.source import open_data
from tests.study.study_data import make_data, write_config


@pytest.fixture(scope="module")
def validation(tmp_path_factory):
    data = open_data(make_data(tmp_path_factory.mktemp("evaluation")), 64)
    return data.annotations("val"), data.images("val")


def shifted(coco, seed):
    """The ground truth moved by up to 2 pixels, some of it under another class, with random scores."""
    generator = np.random.default_rng(seed)
    detections = []
    for one in coco["annotations"]:
        mask = coco_mask.decode(one["segmentation"])
        mask = np.roll(mask, generator.integers(-2, 3, 2), (0, 1))
        category = 1 + int(generator.integers(8)) if generator.random() < 0.3 else one["category_id"]
        rle = coco_mask.encode(np.asfortranarray(mask))
        score = float(generator.random())
        image = one["image_id"]
        detections.append({"image_id": image, "category_id": category, "score": score, "segmentation": rle})
    return detections


def test_ap_is_that_of_the_packages_metric(validation):
    path, _ = validation
    coco = load_coco(path)
    detections = shifted(coco, 0)
    metrics = [InstanceMetric(path), ClassAgnosticCocoMetric(path)]
    for metric in metrics:
        metric.dataset_meta = {"classes": tuple(one["name"] for one in coco["categories"])}
    for image in coco["images"]:
        own = [one for one in detections if one["image_id"] == image["id"]]
        boxes = np.array([coco_mask.toBbox(one["segmentation"]) for one in own]).reshape(-1, 4)
        sample = {"img_id": image["id"], "ori_shape": (image["height"], image["width"])}
        sample["pred_instances"] = {
            "bboxes": torch.from_numpy(boxes),
            "scores": torch.tensor([one["score"] for one in own], dtype=torch.float64),
            "labels": torch.tensor([one["category_id"] - 1 for one in own]),
            "masks": [one["segmentation"] for one in own],
        }
        for metric in metrics:
            metric.process({}, [sample])
    over_classes, agnostic = (metric.compute_metrics(metric.results) for metric in metrics)
    mine = average_precision(coco, detections)
    assert 0 < mine["ap"] < 100
    assert mine["ap"] == pytest.approx(100 * over_classes["segm_mAP"], abs=1e-9)
    assert mine["ap50"] == pytest.approx(100 * over_classes["segm_mAP_50"], abs=1e-9)
    one_class = [dict(one, category_id=1) for one in coco["annotations"]]
    merged = dict(coco, annotations=one_class, categories=[{"id": 1, "name": "object"}])
    mine = average_precision(merged, [dict(one, category_id=1) for one in detections])
    assert mine["ap"] == pytest.approx(100 * agnostic["segm_mAP"], abs=1e-9)


def test_nothing_found_is_zero(validation):
    coco = load_coco(validation[0])
    assert set(average_precision(coco, []).values()) == {0.0}
    assert average_precision(coco, []).keys() == average_precision(coco, shifted(coco, 0)).keys()


def test_best_iou_is_the_mean_over_objects_but_crowds():
    def box(y, height):
        mask = np.zeros((16, 16), np.uint8, order="F")
        mask[y : y + height] = 1
        return coco_mask.encode(mask)

    def one(image, mask, **rest):
        area = float(coco_mask.area(mask))
        return {"id": 0, "image_id": image, "category_id": 1, "segmentation": mask, "area": area, **rest}

    truth = [one(1, box(0, 4), iscrowd=0), one(1, box(0, 16), iscrowd=1), one(2, box(8, 4), iscrowd=0)]
    for number, each in enumerate(truth, start=1):
        each.update(id=number, bbox=coco_mask.toBbox(each["segmentation"]).tolist())
    coco = {
        "images": [{"id": i, "height": 16, "width": 16} for i in (1, 2)],
        "categories": [{"id": 1, "name": "object"}],
        "annotations": truth,
    }
    found = [one(1, box(0, 8), score=0.1), one(1, box(0, 3), score=0.9)]  # IoU 1/2 and 3/4; none on image 2
    assert average_precision(coco, found)["best_iou"] == pytest.approx(100 * (0.75 + 0.0) / 2)


def test_an_image_alone_and_among_others_has_the_same_ap(validation, tmp_path):
    path, folder = validation
    coco = load_coco(path)
    settings = load_settings(str(write_config(tmp_path / "narrow.py")))
    detector = build_detector(settings, len(coco["categories"]), 0, None)
    normalize = Normalizer(settings.model.data_preprocessor)
    ids = sorted(one["id"] for one in coco["categories"])
    images = load_images([folder / one["file_name"] for one in coco["images"]], 64, workers=1)
    values = evaluate(detector, normalize, images, coco, ids)
    assert values.keys() == {"classes", "class_agnostic"}
    assert all(-1 <= value <= 100 for group in values.values() for value in group.values())
    # The order of the images is of no account.
    turned = dict(coco, images=coco["images"][::-1])
    save_coco(turned, tmp_path / "turned.json")
    images = load_images([folder / one["file_name"] for one in turned["images"]], 64, workers=1)
    assert evaluate(detector, normalize, images, turned, ids) == values
