"""Sample images for the page: pseudo labels and predictions, drawn over the image."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from sp_fast.data.coco import load_coco
from sp_fast.data.images import read_image
from sp_fast.data.rle import to_rle
from sp_fast.drawing import PALETTE, WHITE, data_uri, overlay, resized
from sp_fast.experiments.plan import Plan, Run
from sp_fast.experiments.worker import MASKS, PREDICTIONS, filled

BEST = 8
PREDICTED = f"{PREDICTIONS}.segm.json"


class Strip(NamedTuple):
    """Pictures side by side as data URIs, one per sample image; row and seed of predictions."""

    label: str
    pictures: list[str]
    row: str | None = None
    seed: int | None = None


def proposal_samples(runs: dict[str, Run], count: int) -> list[Strip]:
    """Plain images, then the best pseudo labels of each finished run on them; empty without images."""
    strips: list[Strip] = []
    names: list[str] = []
    for label, run in runs.items():
        coco = json.loads((run.folder / MASKS).read_text())
        ids = {info["file_name"]: info["id"] for info in coco["images"]}
        names = names or _spread(list(ids), count)
        paths = [_place(run, "images") / name for name in names]
        if not paths or not all(path.is_file() for path in paths):
            continue
        images = [read_image(path) for path in paths]
        if not strips:
            strips.append(Strip("image", [data_uri(resized(image)) for image in images]))
        masks = _by_image(coco["annotations"])
        best = [_best(masks[ids.get(name)], BEST) for name in names]
        strips.append(Strip(label, [_drawn(*pair) for pair in zip(images, best, strict=True)]))
    return strips


def prediction_samples(plan: Plan, training: str) -> list[Strip]:
    """The annotated objects of some validation images, and each row's predictions; empty without images.

    All rows are shown with the seed that most of them have finished. The number of predictions drawn is the
    number of objects in the image, those with the best scores. Each has the colour of the object with the
    highest IoU, or white if that is not above 0.5.
    """
    ready = []
    for seed in plan.seeds:
        runs = [(row, plan.of(row.name, training, seed)) for row in plan.experiment.rows]
        finished = [(row, run) for row, run in runs if run is not None and run.finished]
        ready.append([(row, run) for row, run in finished if (run.folder / PREDICTED).is_file()])
    runs_shown = max(ready, key=len)
    if not runs_shown or not _place(runs_shown[0][1], "val_images").is_dir():
        return []
    first = runs_shown[0][1]
    coco = load_coco(_place(first, "val_annotations"))
    objects = _by_image(one for one in coco["annotations"] if not one["iscrowd"])
    # Without objects there is nothing to see, and a crowd cannot be told apart.
    few = [info for info in coco["images"] if 2 <= len(objects[info["id"]]) <= 8]
    infos = _spread(few or coco["images"], plan.experiment.samples)
    images = {info["id"]: read_image(_place(first, "val_images") / info["file_name"]) for info in infos}
    drawn = [_drawn(image, objects[key]) for key, image in images.items()]
    strips = [Strip("annotated objects", drawn)]
    for row, run in runs_shown:
        if run.spec["val_annotations"] == first.spec["val_annotations"]:
            predicted = _by_image(json.loads((run.folder / PREDICTED).read_text()))
            best = {key: _best(predicted[key], len(objects[key])) for key in images}
            drawn = [_drawn(image, best[key], objects[key]) for key, image in images.items()]
            strips.append(Strip(row.label, drawn, row.name, run.seed))
    return strips


def _drawn(image: np.ndarray, masks: list[dict[str, Any]], truth: list[dict[str, Any]] | None = None) -> str:
    """The image with annotations over it as a data URI; with `truth`, in the colours of those objects."""
    rles = [to_rle(one["segmentation"], *image.shape[:2]) for one in masks]
    colours = list(PALETTE[np.arange(len(rles)) % len(PALETTE)])
    if truth is not None and rles:
        objects = [to_rle(one["segmentation"], *image.shape[:2]) for one in truth]
        iou = np.asarray(coco_mask.iou(rles, objects, [0] * len(objects)))
        colours = [PALETTE[one.argmax() % len(PALETTE)] if one.max() > 0.5 else WHITE for one in iou]
    return data_uri(overlay(image, [coco_mask.decode(rle).astype(bool) for rle in rles], colours))


def _best(annotations: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return sorted(annotations, key=lambda one: -one.get("score", 0))[:count]


def _place(run: Run, name: str) -> Path:
    """A path of the run's spec, with `{data}` and `{seed}` filled in."""
    data = str(run.folder.parent / run.needs.get("data", ""))
    return Path(filled(run.spec[name], {"data": data, "seed": str(run.seed)}))


def _by_image(annotations: Iterable[dict[str, Any]]) -> defaultdict[Any, list[dict[str, Any]]]:
    found = defaultdict(list)
    for one in annotations:
        found[one["image_id"]].append(one)
    return found


def _spread(values: list[Any], count: int) -> list[Any]:
    """At most `count` values, evenly spread."""
    return values[:: max(len(values) // max(count, 1), 1)][:count]
