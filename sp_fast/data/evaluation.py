"""COCO average precision and recall of detections, and the mean best IoU per object."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from typing import Any, Literal

import hotcoco
import numpy as np
from pycocotools import coco as pycoco
from pycocotools import cocoeval as pycocoeval
from pycocotools import mask as coco_mask

from sp_fast.data.rle import best_ious, to_rle

AP_NAMES = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
AR_NAMES = ("AR@1", "AR@10", "AR@100", "AR_s", "AR_m", "AR_l")
EVALUATORS = ("hotcoco", "pycocotools")

Merging = bool | Literal["merged", "no_categories"]


def evaluate_coco(
    truth: dict[str, Any],
    detections: Sequence[dict[str, Any]],
    iou_type: str = "segm",
    *,
    class_agnostic: Merging = False,
    per_class: bool = False,
    curves: bool = False,
    evaluator: str = "hotcoco",
) -> dict[str, Any]:
    """Evaluate detections against annotated objects.

    Args:
        truth: COCO-format dict as `load_coco` returns it; ids may be numbers or strings, from 0 or from 1.
        detections: list in COCO's results format: `image_id`, `category_id`, `score`, and `segmentation` or
            `bbox` (xywh, pixels).
        iou_type: "segm" compares masks, "bbox" compares boxes.
        class_agnostic: treat all categories as one, by either protocol in use. "merged" or True: all labels,
            known or not, become one class, in which a mask (or box) predicted several times in an image,
            with different labels, counts once, with its best score. "no_categories": pycocotools'
            `useCats = 0`, in which each of them counts.
        per_class: add `per_class`.
        curves: add `precision`.
        evaluator: "hotcoco", or "pycocotools" to confirm it: the same values, 5 to 50 times slower.

    Returns:
        Values in 0..1, NaN where there are no objects to measure. mAP (mean over IoU 0.5:0.95), mAP_50,
        mAP_75, and mAP_s, mAP_m, mAP_l for COCO's small, medium and large objects; AR@1, AR@10, AR@100: the
        average recall with that many detections per image, and AR_s, AR_m, AR_l with 100; best_iou: each
        object's best IoU with any detection in its image, averaged over the objects that are not crowds.
        On request, `per_class`: the values but best_iou of each category by name (class-agnostic: of
        "object"); `precision`: float64 [10, 101], at IoU 0.5:0.05:0.95 and recall 0:0.01:1, the mean over
        the categories that have objects.

    Raises:
        ValueError: unknown `iou_type`, `class_agnostic` or `evaluator`, or a detection's image or category
            is not in `truth`.
    """
    if iou_type not in ("segm", "bbox"):
        raise ValueError(f"iou_type must be 'segm' or 'bbox', got {iou_type!r}")
    if class_agnostic not in (False, True, "merged", "no_categories"):
        raise ValueError(f"class_agnostic must be False, 'merged' or 'no_categories', got {class_agnostic!r}")
    if evaluator not in EVALUATORS:
        raise ValueError(f"evaluator must be one of {', '.join(EVALUATORS)}, got {evaluator!r}")
    merged = class_agnostic in (True, "merged")
    images, objects, found = _renumbered(truth, detections, iou_type, any_category=bool(class_agnostic))
    shape = "segmentation" if iou_type == "segm" else "bbox"
    names = [one["name"] if per_class else "" for one in truth["categories"]]
    if class_agnostic:
        names = ["object"]
        objects, found = (_one_category(entries, in_order=merged) for entries in (objects, found))
    if merged:
        found = _without_duplicates(found, shape)
    wanted, predicted = (_dataset(images, len(names), entries) for entries in (objects, found))
    precision, recall = _accumulated(wanted, predicted, iou_type, evaluator)
    values: dict[str, Any] = _values(precision, recall)
    values["best_iou"] = _mean_best_iou(objects, found, shape)
    if per_class:
        values["per_class"] = {
            name: _values(precision[:, :, [k]], recall[:, [k]]) for k, name in enumerate(names)
        }
    if curves:
        all_sizes = precision[:, :, :, 0, -1]
        values["precision"] = _mean(all_sizes, axis=2)
    return values


def _renumbered(
    truth: dict[str, Any], detections: Sequence[dict[str, Any]], iou_type: str, *, any_category: bool
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Images, objects and detections with ids of images and categories from 0, and with run lengths."""
    ordered = sorted(truth["images"], key=lambda image: (isinstance(image["id"], str), image["id"]))
    images = {image["id"]: dict(image, id=number) for number, image in enumerate(ordered)}
    categories = {one["id"]: k for k, one in enumerate(truth["categories"])}
    other = len(categories) if any_category else None

    def entry(one: dict[str, Any]) -> dict[str, Any]:
        image, category = images.get(one["image_id"]), categories.get(one["category_id"], other)
        if image is None or category is None:
            raise ValueError(
                f"a detection has image_id {one['image_id']!r} and category_id {one['category_id']!r}: "
                f"expected ids of the {len(images)} annotated images and {len(categories)} categories"
            )
        known = {"image_id": image["id"], "category_id": category}
        if iou_type == "bbox":
            return known | {"bbox": list(one["bbox"]), "area": one["bbox"][2] * one["bbox"][3]}
        rle = to_rle(one["segmentation"], image["height"], image["width"])
        counts = rle["counts"].decode() if isinstance(rle["counts"], bytes) else rle["counts"]
        return known | {
            "segmentation": {"size": list(rle["size"]), "counts": counts},
            "area": float(coco_mask.area(rle)),
        }

    objects = [
        dict(entry(one), area=one["area"], iscrowd=one.get("iscrowd", 0)) for one in truth["annotations"]
    ]
    found = [dict(entry(one), score=one["score"], iscrowd=0) for one in detections]
    return list(images.values()), objects, found


def _one_category(entries: list[dict[str, Any]], *, in_order: bool) -> list[dict[str, Any]]:
    """The entries in one category; else than `in_order`, by category, as pycocotools breaks ties."""
    if not in_order:
        entries = sorted(entries, key=lambda one: one["category_id"])
    return [dict(one, category_id=0) for one in entries]


def _without_duplicates(found: list[dict[str, Any]], shape: str) -> list[dict[str, Any]]:
    best: dict[Any, dict[str, Any]] = {}
    for one in found:
        place = one[shape]["counts"] if shape == "segmentation" else tuple(one[shape])
        key = one["image_id"], place
        if key not in best or one["score"] > best[key]["score"]:
            best[key] = one
    return list(best.values())


def _dataset(images: list[dict[str, Any]], categories: int, entries: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "images": [{key: image[key] for key in ("id", "height", "width")} for image in images],
        "categories": [{"id": number, "name": str(number)} for number in range(categories)],
        # From 1: pycocotools treats an object or detection with id 0 as unmatched.
        "annotations": [dict(one, id=number) for number, one in enumerate(entries, start=1)],
    }


def _accumulated(
    objects: dict[str, Any], found: dict[str, Any], iou_type: str, evaluator: str
) -> tuple[np.ndarray, np.ndarray]:
    """COCO's precision [IoU, recall, category, area, detections] and recall, the same without recall."""
    if evaluator == "hotcoco":
        metric: Any = hotcoco.COCOeval(hotcoco.COCO(objects), hotcoco.COCO(found), iou_type)
    else:
        metric = pycocoeval.COCOeval(_pycoco(objects), _pycoco(found), iou_type)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        metric.evaluate()
        metric.accumulate()
    return np.asarray(metric.eval["precision"]), np.asarray(metric.eval["recall"])


def _pycoco(dataset: dict[str, Any]) -> pycoco.COCO:
    coco = pycoco.COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _values(precision: np.ndarray, recall: np.ndarray) -> dict[str, float]:
    """COCO's 12 numbers; areas are all, small, medium, large, and detections 1, 10, 100."""
    best = precision[..., -1]
    aps = [best[..., 0], best[:1, ..., 0], best[5:6, ..., 0], *(best[..., area] for area in (1, 2, 3))]
    ars = [*(recall[..., 0, k] for k in range(3)), *(recall[..., area, -1] for area in (1, 2, 3))]
    return {name: float(_mean(part)) for name, part in zip((*AP_NAMES, *AR_NAMES), (*aps, *ars), strict=True)}


def _mean(values: np.ndarray, axis: int | None = None) -> Any:
    """Mean of the values that are measured (not -1), NaN where none is."""
    measured = values > -1
    count = measured.sum(axis=axis)
    total = np.where(measured, values, 0.0).sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), math.nan)


def _mean_best_iou(objects: list[dict[str, Any]], found: list[dict[str, Any]], shape: str) -> float:
    wanted, predicted = _by_image(objects), _by_image(found)
    best = [
        best_ious(
            [one[shape] for one in entries if not one["iscrowd"]],
            [one[shape] for one in predicted.get(image, [])],
        )
        for image, entries in wanted.items()
    ]
    iou = np.concatenate([np.zeros(0), *best])
    return float(iou.mean()) if len(iou) else math.nan


def _by_image(entries: list[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    found: dict[int, list[dict[str, Any]]] = {}
    for one in entries:
        found.setdefault(one["image_id"], []).append(one)
    return found
