"""How well the objects of each image were found, and pictures of where they were not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from sp_fast.data.images import read_labelled
from sp_fast.data.rle import to_rle
from sp_fast.drawing import PALETTE, WHITE, data_uri, overlay


class ImageScore(NamedTuple):
    """An image's F1 at IoU 0.5 of its `objects` and as many detections, those with the best scores.

    `truth` and `found` are these objects and detections; `matched[k]` is the position in `truth` of the
    object that detection k found, -1 for none.
    """

    file_name: str
    f1: float
    objects: int
    truth: list[dict[str, Any]]
    found: list[dict[str, Any]]
    matched: list[int]


def image_scores(
    truth: dict[str, Any], detections: Sequence[dict[str, Any]], *, masks: bool, same_class: bool
) -> list[ImageScore]:
    """Score each image that has objects other than crowds, the worst first, large numbers of objects first.

    Args:
        truth: annotations from `load_coco`.
        detections: results with compressed run lengths, or with boxes only.
        masks: compare masks, not boxes.
        same_class: only objects of its class can be found by a detection.
    """
    objects, found = defaultdict(list), defaultdict(list)
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    for one in truth["annotations"]:
        if not one.get("iscrowd"):
            rle = to_rle(one["segmentation"], *sizes[one["image_id"]])
            objects[one["image_id"]].append({**one, "segmentation": rle})
    for one in detections:
        found[one["image_id"]].append(one)
    scores = []
    for image in truth["images"]:
        wanted = objects[image["id"]]
        if wanted:
            best = sorted(found[image["id"]], key=lambda one: -one["score"])[: len(wanted)]
            matched = _matched(best, wanted, "segmentation" if masks else "bbox", same_class)
            f1 = 2 * sum(k >= 0 for k in matched) / (len(wanted) + len(best))
            scores.append(ImageScore(image["file_name"], f1, len(wanted), wanted, best, matched))
    return sorted(scores, key=lambda one: (one.f1, -one.objects, one.file_name))


def _matched(found: list[dict], objects: list[dict], shape: str, same_class: bool) -> list[int]:
    """For each detection, best first, the free object with the highest IoU of at least 0.5, or -1."""
    if not found:
        return []
    iou = coco_mask.iou([one[shape] for one in found], [one[shape] for one in objects], [0] * len(objects))
    iou = np.array(iou)
    if same_class:
        classes = [np.array([one["category_id"] for one in part]) for part in (found, objects)]
        iou[classes[0][:, None] != classes[1]] = 0
    matched = []
    for row in iou:
        best = int(row.argmax())
        matched.append(best if row[best] >= 0.5 else -1)
        if matched[-1] >= 0:
            iou[:, best] = 0
    return matched


def pictures(score: ImageScore, folder: Path) -> tuple[str, str]:
    """The annotated objects and the detections over the image, as data URIs.

    A detection has the colour of the object that it found, or is white.
    """
    image, _ = read_labelled(folder / score.file_name, tuple(score.truth[0]["segmentation"]["size"]))
    colours = [PALETTE[k % len(PALETTE)] for k in range(score.objects)]
    of_found = [WHITE if k < 0 else colours[k] for k in score.matched]
    truth, found = (
        data_uri(overlay(image, [coco_mask.decode(one["segmentation"]).astype(bool) for one in part], chosen))
        for part, chosen in ((score.truth, colours), (score.found, of_found))
    )
    return truth, found
