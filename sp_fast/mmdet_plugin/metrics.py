"""COCO AP and AR, per class and class-agnostic, registered with mmdet."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import Any

import torch
from mmdet.registry import METRICS
from mmengine.evaluator import BaseMetric

from sp_fast.data.coco import load_coco, save_coco
from sp_fast.data.evaluation import evaluate_coco
from sp_fast.data.rle import run_lengths


@METRICS.register_module()
class InstanceMetric(BaseMetric):
    """COCO AP and AR of a detector's instances, see `evaluate_coco`.

    Classes are matched by name, whatever their order; a model that predicts nothing has AP 0.

    Args:
        ann_file: annotation file of the evaluated data set, checked by `load_coco`.
        metric: "segm" for masks, "bbox" for boxes, or a list of them.
        class_agnostic: treat all objects and predictions as one class.
        outfile_prefix: write the predictions to `<outfile_prefix>.segm.json` (and `.bbox.json`) in COCO's
            results format.
        options: options of mmengine's BaseMetric.

    Raises:
        FileNotFoundError, ValueError: see `load_coco`; another `metric`.
    """

    default_prefix = "coco"

    def __init__(
        self,
        ann_file: str | os.PathLike[str],
        metric: str | Sequence[str] = "segm",
        class_agnostic: bool = False,
        outfile_prefix: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.metrics = [metric] if isinstance(metric, str) else list(metric)
        if not self.metrics or not {"segm", "bbox"}.issuperset(self.metrics):
            raise ValueError(f"metric must be 'segm', 'bbox' or a list of them, got {metric!r}")
        self.class_agnostic = class_agnostic
        self.outfile_prefix = outfile_prefix
        self.truth = load_coco(ann_file, class_agnostic=class_agnostic)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Collects the predictions of one batch."""
        for sample in data_samples:
            found = sample["pred_instances"]
            one = {name: found[name].tolist() for name in ("labels", "scores", "bboxes")}
            if "segm" in self.metrics:
                if "masks" not in found:
                    raise ValueError("metric is 'segm', but the model predicts no masks: use metric='bbox'")
                masks = found["masks"]
                one["masks"] = run_lengths(masks.cpu().numpy()) if isinstance(masks, torch.Tensor) else masks
            self.results.append((sample["img_id"], one))

    def compute_metrics(self, results: list[tuple[Any, dict[str, list]]]) -> dict[str, float]:
        """Values over all images by name ("segm_mAP", ...), 0 to 1, without those that have no objects."""
        ids = [1] * len(self.dataset_meta["classes"]) if self.class_agnostic else self._ids_of_classes()
        truth = _of_images(self.truth, {image_id for image_id, _ in results})
        truth = truth if self.class_agnostic else _only(truth, ids)
        values: dict[str, float] = {}
        for metric in self.metrics:
            detections = [one for result in results for one in _detections(*result, ids, metric)]
            if self.outfile_prefix is not None:
                save_coco(detections, f"{self.outfile_prefix}.{metric}.json")
            scores = evaluate_coco(truth, detections, metric, class_agnostic=self.class_agnostic)
            values |= {f"{metric}_{name}": value for name, value in scores.items() if not math.isnan(value)}
        return values

    def _ids_of_classes(self) -> list:
        ids = {category["name"]: category["id"] for category in self.truth["categories"]}
        missing = [name for name in self.dataset_meta["classes"] if name not in ids]
        if missing:
            raise ValueError(
                f"the data set's classes {missing} are not categories of the metric's annotation file, which "
                f"has {list(ids)}; a class-agnostic data set needs ClassAgnosticCocoMetric"
            )
        return [ids[name] for name in self.dataset_meta["classes"]]


def _of_images(truth: dict[str, Any], ids: set) -> dict[str, Any]:
    """The annotations of the images that were evaluated; the data set may be a part of its file."""
    images = [one for one in truth["images"] if one["id"] in ids]
    annotations = [one for one in truth["annotations"] if one["image_id"] in ids]
    return dict(truth, images=images, annotations=annotations)


def _only(truth: dict[str, Any], ids: list) -> dict[str, Any]:
    """The annotations of the data set's classes; its file may have more."""
    categories = [one for one in truth["categories"] if one["id"] in ids]
    annotations = [one for one in truth["annotations"] if one["category_id"] in ids]
    return dict(truth, categories=categories, annotations=annotations)


def _detections(image_id: Any, found: dict[str, list], ids: list, metric: str) -> list[dict[str, Any]]:
    """The predictions of one image in COCO's results format."""
    if metric == "segm":
        shapes = [{"segmentation": mask} for mask in found["masks"]]
    else:
        shapes = [{"bbox": [x0, y0, x1 - x0, y1 - y0]} for x0, y0, x1, y1 in found["bboxes"]]
    return [
        {"image_id": image_id, "category_id": ids[label], "score": score, **shape}
        for label, score, shape in zip(found["labels"], found["scores"], shapes, strict=True)
    ]


@METRICS.register_module()
class ClassAgnosticCocoMetric(InstanceMetric):
    """InstanceMetric with `class_agnostic=True`; another prefix, so that both can be measured."""

    default_prefix = "class_agnostic"

    def __init__(self, ann_file: str | os.PathLike[str], **options: Any) -> None:
        super().__init__(ann_file=ann_file, class_agnostic=True, **options)
