"""All numbers of an evaluation."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from sp_fast.data.coco import load_coco
from sp_fast.data.evaluation import Merging, evaluate_coco
from sp_fast.data.rle import to_rle
from sp_fast.evaluation.per_image import ImageScore, image_scores
from sp_fast.evaluation.sources import Detections, read_detections


@dataclass(frozen=True)
class Report:
    """The numbers of an evaluation.

    Attributes:
        images: number of annotated images.
        objects: number of annotated objects, without crowds.
        detections: number of detections.
        class_agnostic: False, or the protocol by which classes were ignored.
        evaluator: "hotcoco" or "pycocotools".
        overall: for "masks" and "boxes" the values of `evaluate_coco`, 0 to 1 or NaN.
        per_class: for each class that has objects, "objects", their number, and its values of "masks" and
            "boxes"; empty if classes were ignored.
        precision: for "masks" and "boxes" precision, float64 [10, 101]; see `evaluate_coco`.
        per_image: F1 of each image that has objects, the worst first.
        notes: what to know about the detections.
    """

    images: int
    objects: int
    detections: int
    class_agnostic: Merging
    evaluator: str
    overall: dict[str, dict[str, float]]
    per_class: dict[str, dict[str, Any]]
    precision: dict[str, np.ndarray]
    per_image: list[ImageScore]
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The report as JSON values; null for NaN."""
        curves = {kind: values.tolist() for kind, values in self.precision.items()}
        return {
            **{key: getattr(self, key) for key in ("images", "objects", "detections", "evaluator")},
            "class_agnostic": self.class_agnostic,
            "notes": list(self.notes),
            **_without_nan(self.overall),
            "per_class": _without_nan(self.per_class),
            "precision": _without_nan(curves),
            "per_image": [
                {"file_name": one.file_name, "f1": one.f1, "objects": one.objects} for one in self.per_image
            ],
        }


def evaluate(
    truth: dict[str, Any],
    detections: Detections,
    *,
    class_agnostic: Merging = False,
    boxes_from_masks: bool = False,
    evaluator: str = "hotcoco",
) -> Report:
    """Evaluate detections by masks, if they have them, and by boxes.

    A detection with a mask but without a box gets the tight box of its mask. Detections without classes are
    compared by the protocol "merged".

    Args:
        truth: annotations from `load_coco`.
        detections: see `read_detections` and `predict_detections`.
        class_agnostic: see `evaluate_coco`.
        boxes_from_masks: replace the box of every detection that has a mask by the mask's tight box.
        evaluator: see `evaluate_coco`.

    Raises:
        ValueError: see `evaluate_coco`.
    """
    class_agnostic = class_agnostic or ("merged" if detections.any_object else False)
    entries = _complete(detections, truth, boxes_from_masks)
    kinds = {"masks": "segm", "boxes": "bbox"} if detections.has_masks else {"boxes": "bbox"}
    overall, precision, by_class = {}, {}, {}
    for kind, iou_type in kinds.items():
        values = evaluate_coco(
            truth,
            entries,
            iou_type,
            class_agnostic=class_agnostic,
            per_class=True,
            curves=True,
            evaluator=evaluator,
        )
        by_class[kind], precision[kind] = values.pop("per_class"), values.pop("precision")
        overall[kind] = values
    objects = [one for one in truth["annotations"] if not one.get("iscrowd")]
    counts = Counter(one["category_id"] for one in objects)
    names = {one["id"]: one["name"] for one in truth["categories"]}
    per_class = {
        names[category]: {"objects": counts[category]}
        | {kind: values[names[category]] for kind, values in by_class.items()}
        for category in names
        if counts[category] and not class_agnostic
    }
    return Report(
        images=len(truth["images"]),
        objects=len(objects),
        detections=len(entries),
        class_agnostic=class_agnostic,
        evaluator=evaluator,
        overall=overall,
        per_class=per_class,
        precision=precision,
        per_image=image_scores(truth, entries, masks=detections.has_masks, same_class=not class_agnostic),
        notes=detections.notes,
    )


def evaluate_results(
    predictions: str | os.PathLike[str],
    annotations: str | os.PathLike[str],
    *,
    what: str = "segm",
    boxes_from_masks: bool = False,
    class_agnostic: Merging = False,
) -> dict[str, float]:
    """Computes AP, AR and best IoU of a file of results, by masks or by boxes.

    The paper's Table 6 is `what="bbox", boxes_from_masks=True, class_agnostic="no_categories"`.

    Args:
        predictions: see `read_detections`.
        annotations: COCO-format file.
        what: "segm" compares masks, "bbox" compares boxes.
        boxes_from_masks: see `evaluate`; results that have only boxes keep them.
        class_agnostic: see `evaluate`.

    Returns:
        The values of `evaluate_coco`, 0 to 1 or NaN.

    Raises:
        FileNotFoundError, ValueError: see `load_coco`, `read_detections` and `evaluate_coco`; or `what` is
            "segm" and the results have only boxes.
    """
    truth = load_coco(annotations, class_agnostic=bool(class_agnostic))
    found = read_detections(predictions, truth, ignore_classes=bool(class_agnostic))
    if what == "segm" and not found.has_masks:
        raise ValueError(f"what: expected 'bbox', since {predictions} has boxes only; got 'segm'")
    class_agnostic = class_agnostic or ("merged" if found.any_object else False)
    entries = _complete(found, truth, boxes_from_masks)
    return evaluate_coco(truth, entries, what, class_agnostic=class_agnostic)


def largest_difference(one: Report, other: Report) -> float:
    """The largest difference of any value, overall or of a class; infinite if only one of two is NaN."""
    pairs = [(one.overall[kind], other.overall[kind]) for kind in one.overall]
    for name, values in one.per_class.items():
        pairs += [(values[kind], other.per_class[name][kind]) for kind in one.overall]
    differences = [0.0]
    for mine, theirs in pairs:
        for key in mine:
            nan = math.isnan(mine[key]), math.isnan(theirs[key])
            difference = abs(mine[key] - theirs[key]) if not any(nan) else 0.0
            differences.append(difference if nan[0] == nan[1] else math.inf)
    return max(differences)


def _complete(detections: Detections, truth: dict[str, Any], boxes_from_masks: bool) -> list[dict[str, Any]]:
    """The detections with compressed run lengths and boxes."""
    if not detections.has_masks:
        return detections.entries
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    found = []
    for one in detections.entries:
        rle = to_rle(one["segmentation"], *sizes[one["image_id"]])
        given = "bbox" in one and not boxes_from_masks
        box = one["bbox"] if given else coco_mask.toBbox(rle).tolist()
        found.append({**one, "segmentation": rle, "bbox": box})
    return found


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
