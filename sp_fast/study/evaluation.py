"""COCO mask AP on the validation images, over classes and class-agnostic."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from sp_fast.data.evaluation import evaluate_coco
from sp_fast.data.rle import run_lengths
from sp_fast.knet.prediction import masks_at_image_size, select_top
from sp_fast.study.batches import in_turn, make_batch
from sp_fast.study.memory import Images
from sp_fast.study.models import Normalizer
from sp_fast.study.precision import mixed_precision

BATCH_SIZE = 16
OBJECT = 1  # the category of everything, class-agnostic
NAMES = {
    **{"ap": "mAP", "ap50": "mAP_50", "ap75": "mAP_75"},
    **{"ap_small": "mAP_s", "ap_medium": "mAP_m", "ap_large": "mAP_l", "ar": "AR@100", "ar_large": "AR_l"},
}


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
            yield (
                position,
                kernels,
                labels,
                scores,
                best[i],
                run_lengths((masks > detector.mask_thr).cpu().numpy()),
            )


def as_one_class(coco: dict[str, Any]) -> dict[str, Any]:
    """The annotations with all categories as OBJECT."""
    annotations = [dict(one, category_id=OBJECT) for one in coco["annotations"]]
    return dict(coco, categories=[{"id": OBJECT, "name": "object"}], annotations=annotations)


def detection(image_id: Any, category: int, score: float, mask: dict[str, Any]) -> dict[str, Any]:
    """One entry of COCO's results."""
    return {"image_id": image_id, "category_id": category, "score": score, "segmentation": mask}


def average_precision(coco: dict[str, Any], detections: list[dict]) -> dict[str, float]:
    """COCO's mask AP and AR of detections and the objects' mean best IoU with one, all in points of 0 to 100.

    -1 where there are no objects.
    """
    if not detections:
        return dict.fromkeys((*NAMES, "best_iou"), 0.0)
    values = evaluate_coco(coco, detections)
    chosen = {name: values[key] for name, key in (NAMES | {"best_iou": "best_iou"}).items()}
    return {name: -1.0 if math.isnan(value) else 100 * value for name, value in chosen.items()}
