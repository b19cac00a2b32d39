"""COCO average precision and recall of detections, and the mean best IoU per object."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sp_fast.data.rle import best_ious, to_rle

# In the order of COCOeval.stats.
_AP = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
_AR = ("AR@1", "AR@10", "AR@100", "AR_s", "AR_m", "AR_l")


def evaluate_coco(
    truth: dict[str, Any],
    detections: Sequence[dict[str, Any]],
    iou_type: str = "segm",
    *,
    class_agnostic: bool = False,
) -> dict[str, float]:
    """Evaluate detections against annotated objects.

    Args:
        truth: COCO-format dict as `load_coco` returns it; ids may be numbers or strings, from 0 or from 1.
        detections: list in COCO's results format: `image_id`, `category_id`, `score`, and `segmentation` or
            `bbox` (xywh, pixels).
        iou_type: "segm" compares masks, "bbox" compares boxes.
        class_agnostic: treat all categories as one. A mask (or box) predicted several times in an image, with
            different labels, then counts once, with its best score.

    Returns:
        Values in 0..1, NaN where there are no objects to measure. mAP (mean over IoU 0.5:0.95), mAP_50,
        mAP_75, and mAP_s, mAP_m, mAP_l for COCO's small, medium and large objects; AR@1, AR@10, AR@100: the
        average recall with that many detections per image, and AR_s, AR_m, AR_l with 100; best_iou: each
        object's best IoU with any detection in its image, averaged over the objects that are not crowds.

    Raises:
        ValueError: unknown `iou_type`, or a detection's image or category is not in `truth`.
    """
    if iou_type not in ("segm", "bbox"):
        raise ValueError(f"iou_type must be 'segm' or 'bbox', got {iou_type!r}")
    shape = "segmentation" if iou_type == "segm" else "bbox"
    ordered = sorted(truth["images"], key=lambda image: (isinstance(image["id"], str), image["id"]))
    images = {image["id"]: dict(image, id=number) for number, image in enumerate(ordered)}
    categories = {one["id"]: 0 if class_agnostic else k for k, one in enumerate(truth["categories"])}

    def entry(one: dict[str, Any]) -> dict[str, Any]:
        image, category = images.get(one["image_id"]), categories.get(one["category_id"])
        if class_agnostic:
            category = 0
        if image is None or category is None:
            raise ValueError(
                f"a detection has image_id {one['image_id']!r} and category_id {one['category_id']!r}: "
                f"expected ids of the {len(images)} annotated images and {len(categories)} categories"
            )
        if iou_type == "segm":
            place: Any = to_rle(one["segmentation"], image["height"], image["width"])
            area = float(coco_mask.area(place))
        else:
            place = list(one["bbox"])
            area = place[2] * place[3]
        return {"image_id": image["id"], "category_id": category, shape: place, "area": area}

    objects = [
        dict(entry(one), area=one["area"], iscrowd=one.get("iscrowd", 0)) for one in truth["annotations"]
    ]
    found = [dict(entry(one), score=one["score"], iscrowd=0) for one in detections]
    if class_agnostic:
        found = _without_duplicates(found, shape)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        wanted, predicted = (_index(images, categories, entries) for entries in (objects, found))
        metric = COCOeval(wanted, predicted, iou_type)
        metric.evaluate()
        metric.accumulate()
        metric.summarize()
    values = {
        name: float(value) if value > -1 else math.nan
        for name, value in zip((*_AP, *_AR), metric.stats, strict=True)
    }
    return values | {"best_iou": _mean_best_iou(wanted, predicted, shape)}


def _without_duplicates(found: list[dict[str, Any]], shape: str) -> list[dict[str, Any]]:
    best: dict[Any, dict[str, Any]] = {}
    for one in found:
        place = one[shape]["counts"] if shape == "segmentation" else tuple(one[shape])
        key = one["image_id"], place.encode() if isinstance(place, str) else place
        if key not in best or one["score"] > best[key]["score"]:
            best[key] = one
    return list(best.values())


def _index(images: dict[Any, dict], categories: dict[Any, int], entries: list[dict[str, Any]]) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": list(images.values()),
        "categories": [{"id": number} for number in sorted(set(categories.values()))],
        # From 1: COCOeval treats an object or detection with id 0 as unmatched.
        "annotations": [dict(one, id=number) for number, one in enumerate(entries, start=1)],
    }
    coco.createIndex()
    return coco


def _mean_best_iou(wanted: COCO, predicted: COCO, shape: str) -> float:
    best = [
        best_ious(
            [one[shape] for one in wanted.imgToAnns[image] if not one["iscrowd"]],
            [one[shape] for one in predicted.imgToAnns[image]],
        )
        for image in wanted.imgs
    ]
    iou = np.concatenate([np.zeros(0), *best])
    return float(iou.mean()) if len(iou) else math.nan
