"""COCO mask AP on the validation images, over classes and class-agnostic."""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from sp_fast.knet.prediction import masks_at_image_size, select_top
from sp_fast.study.batches import in_turn, make_batch
from sp_fast.study.memory import Images
from sp_fast.study.models import Normalizer
from sp_fast.study.precision import mixed_precision

BATCH_SIZE = 16
OBJECT = 1  # the category of everything, class-agnostic
# Where COCOeval's summary has them; recall is that of 100 detections.
NAMES = {"ap": 0, "ap50": 1, "ap75": 2, "ap_small": 3, "ap_medium": 4, "ap_large": 5, "ar": 8, "ar_large": 11}


@torch.no_grad()
def evaluate(
    detector: Any,
    normalize: Normalizer,
    images: Images,
    coco: dict[str, Any],
    class_ids: Sequence[int] | None,
) -> dict[str, dict[str, float]]:
    """`classes` and `class_agnostic`: COCO's AP and AR and `best_iou`, see :func:`average_precision`.

    Class-agnostic, each kernel counts once, with the score of its best class.

    Args:
        detector: a K-Net; left in eval mode.
        normalize: for its images.
        images: in the order of `coco["images"]`.
        coco: annotations in the pixels of the originals.
        class_ids: category id of each label; None for class-agnostic values alone.
    """
    detector.eval()
    over_classes: list[dict] = []
    agnostic: list[dict] = []
    for position, kernels, labels, scores, best, masks in predictions(detector, normalize, images, coco):
        image_id = coco["images"][position]["id"]
        if class_ids is not None:
            over_classes += [
                detection(image_id, class_ids[label], score, masks[kernel])
                for kernel, label, score in zip(kernels, labels, scores, strict=True)
            ]
        agnostic += [detection(image_id, OBJECT, score, masks[kernel]) for kernel, score in enumerate(best)]
    values = {"class_agnostic": average_precision(as_one_class(coco), agnostic)}
    if class_ids is not None:
        values["classes"] = average_precision(coco, over_classes)
    return values


def predictions(
    detector: Any, normalize: Normalizer, images: Images, coco: dict[str, Any]
) -> Iterator[tuple[int, list, list, list, list, list]]:
    """Image by image: its position, the kernels, labels and scores of the best pairs, and of all kernels the
    score of the best class and the mask's run lengths at the original's size.
    """
    device = images.pixels.device
    for index in in_turn(images.sizes, BATCH_SIZE):
        batch = make_batch(images, None, index, np.zeros(len(index), bool))
        inputs = normalize(batch)
        with mixed_precision(device):
            cls_logits, mask_logits = detector(inputs, mode="tensor")
        pairs = [part.tolist() for part in select_top(cls_logits, detector.max_per_img)]
        best = cls_logits.float().sigmoid().amax(2).tolist()
        for i, position in enumerate(index.tolist()):
            info = coco["images"][position]
            masks = masks_at_image_size(
                mask_logits[i],
                (inputs.shape[-2], inputs.shape[-1]),
                tuple(images.sizes[position].tolist()),
                (info["height"], info["width"]),
            )
            scores, labels, kernels = (part[i] for part in pairs)
            yield position, kernels, labels, scores, best[i], run_lengths(masks > detector.mask_thr)


def as_one_class(coco: dict[str, Any]) -> dict[str, Any]:
    """The annotations with all categories as OBJECT."""
    annotations = [dict(one, category_id=OBJECT) for one in coco["annotations"]]
    return dict(coco, categories=[{"id": OBJECT, "name": "object"}], annotations=annotations)


def detection(image_id: Any, category: int, score: float, mask: dict[str, Any]) -> dict[str, Any]:
    """One entry of COCO's results."""
    return {"image_id": image_id, "category_id": category, "score": score, "segmentation": mask}


def run_lengths(masks: Tensor) -> list[dict[str, Any]]:
    """COCO's compressed run lengths of bool masks `[M, H, W]`; only where they change leaves the device."""
    count, height, width = masks.shape
    flat = masks.transpose(1, 2).reshape(count, height * width)
    change = torch.cat([flat[:, :1], flat[:, 1:] != flat[:, :-1]], 1)
    mask, place = change.nonzero().cpu().numpy().T
    ends = [int(end) for end in np.atleast_1d(np.searchsorted(mask, np.arange(count + 1)))]
    uncompressed = []
    for first, last in itertools.pairwise(ends):
        counts = np.diff(place[first:last], prepend=0, append=height * width)
        uncompressed.append({"size": [height, width], "counts": counts.tolist()})
    return coco_mask.frPyObjects(uncompressed, height, width) if uncompressed else []


def average_precision(coco: dict[str, Any], detections: list[dict]) -> dict[str, float]:
    """COCO's mask AP and AR of detections and the objects' mean best IoU with one, all in points of 0 to 100.

    -1 where there are no objects.
    """
    if not detections:
        return dict.fromkeys((*NAMES, "best_iou"), 0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = COCO()
        truth.dataset = coco
        truth.createIndex()
        metric = COCOeval(truth, truth.loadRes([dict(one) for one in detections]), "segm")
        metric.params.imgIds = [image["id"] for image in coco["images"]]
        metric.evaluate()
        metric.accumulate()
        metric.summarize()
    values = {name: float(metric.stats[place]) for name, place in NAMES.items()}
    values["best_iou"] = _mean_best_iou(metric)
    return {name: 100 * value if value >= 0 else -1.0 for name, value in values.items()}


def _mean_best_iou(metric: COCOeval) -> float:
    """Mean over objects that are no crowds of the best IoU with a detection; -1 without objects."""
    best = [
        float(metric.ious[place][:, column].max()) if len(metric.ious[place]) else 0.0
        for place, objects in list(metric._gts.items())
        for column, one in enumerate(objects)
        if not one.get("iscrowd", 0)
    ]
    return float(np.mean(best)) if best else -1.0
