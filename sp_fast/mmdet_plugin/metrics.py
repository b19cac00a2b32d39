"""COCO mask AP, per class and class-agnostic, registered with mmdet."""

from __future__ import annotations

import contextlib
import io
import os
from typing import Any

import numpy as np
from mmdet.datasets.api_wrappers import COCO
from mmdet.evaluation.metrics import CocoMetric
from mmdet.registry import METRICS

from sp_fast.data.coco import load_coco

_ITEMS = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")


@METRICS.register_module()
class InstanceMetric(CocoMetric):
    """mmdet's CocoMetric (COCO AP, averaged over IoU 0.5:0.95), for an InstanceDataset.

    The annotation file is checked by `load_coco`; classes are matched by name, whatever their order; and a
    model that predicts nothing has AP 0.

    Args:
        ann_file: the annotation file of the data set that is evaluated on.
        class_agnostic: all objects and all predictions, whatever their class, are one class "object".
        metric, classwise, proposal_nums, iou_thrs, metric_items, outfile_prefix, prefix, ...: as CocoMetric.
    """

    def __init__(
        self,
        ann_file: str | os.PathLike[str],
        metric: str | list[str] = "segm",
        class_agnostic: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(ann_file=None, metric=metric, **options)
        self.class_agnostic = class_agnostic
        coco = load_coco(ann_file)
        if class_agnostic:
            coco["categories"] = [{"id": 1, "name": "object"}]
            for annotation in coco["annotations"]:
                annotation["category_id"] = 1
        self._coco_api = COCO()
        self._coco_api.dataset = coco
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            self._coco_api.createIndex()

    def process(self, data_batch: Any, data_samples: Any) -> None:
        """Collects the predictions of one batch."""
        super().process(data_batch, data_samples)
        if self.class_agnostic:
            for _, prediction in self.results[-len(data_samples) :]:
                # Not in place: on the CPU the array is a view of the sample, which other metrics read.
                prediction["labels"] = np.zeros_like(prediction["labels"])

    def compute_metrics(self, results: list) -> dict[str, float]:
        """AP over all images, by name ("segm_mAP", ...), 0 to 1."""
        self.cat_ids = [1] if self.class_agnostic else self._ids_of_classes()
        if any(len(prediction["labels"]) for _, prediction in results):
            return super().compute_metrics(results)
        if self.outfile_prefix is not None:
            # Otherwise the files of an earlier evaluation would stay.
            self.results2json([prediction for _, prediction in results], self.outfile_prefix)
        return {f"{metric}_{item}": 0.0 for metric in self.metrics for item in self.metric_items or _ITEMS}

    def _ids_of_classes(self) -> list:
        ids = {category["name"]: category["id"] for category in self._coco_api.dataset["categories"]}
        missing = [name for name in self.dataset_meta["classes"] if name not in ids]
        if missing:
            raise ValueError(
                f"the data set's classes {missing} are not categories of the metric's annotation file, which "
                f"has {list(ids)}; a class-agnostic data set needs ClassAgnosticCocoMetric"
            )
        return [ids[name] for name in self.dataset_meta["classes"]]


@METRICS.register_module()
class ClassAgnosticCocoMetric(InstanceMetric):
    """InstanceMetric with `class_agnostic=True`, with a prefix of its own so that both can be measured."""

    default_prefix = "class_agnostic"

    def __init__(self, ann_file: str | os.PathLike[str], **options: Any) -> None:
        super().__init__(ann_file=ann_file, class_agnostic=True, **options)
