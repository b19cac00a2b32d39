"""Sample images for the page: pseudo labels and predictions, drawn over the image."""

from __future__ import annotations

import json
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from sp_fast.data.coco import load_coco
from sp_fast.data.images import spread
from sp_fast.data.rle import to_rle
from sp_fast.data.store import MaskStore, open_store
from sp_fast.drawing import PALETTE, WHITE, data_uri, overlay, resized
from sp_fast.evaluation.sources import annotated_image
from sp_fast.experiments.experiment import Row
from sp_fast.experiments.plan import Plan, Run
from sp_fast.experiments.worker import MASKS, PREDICTED, place

BEST = 8
NAMED = 5  # masks whose class is written below a picture


class Picture(NamedTuple):
    """A picture as a data URI; its caption: a note, colour and class of some masks, number of the others."""

    uri: str
    note: str = ""
    masks: Sequence[tuple[str, str]] = ()
    more: int = 0


class Strip(NamedTuple):
    """Pictures side by side, one per sample image; row and seed of predictions."""

    label: str
    pictures: list[Picture]
    row: str | None = None
    seed: int | None = None


def proposal_samples(runs: dict[str, Run], count: int) -> list[Strip]:
    """Plain images, then the best pseudo labels of each finished run on them; empty without images."""
    strips: list[Strip] = []
    names: list[str] = []
    for label, run in runs.items():
        coco = sampled(run.folder / MASKS, count, names)
        infos = {info["file_name"]: info for info in coco["images"]}
        names = names or list(infos)
        folder = place(run, "images")
        if not names or not all(name in infos and (folder / name).is_file() for name in names):
            continue
        exif = (coco["info"] or {}).get("exif", "auto")
        images = [annotated_image(infos[name], folder, exif) for name in names]
        if not strips:
            strips.append(Strip("image", [Picture(data_uri(resized(image))) for image in images]))
        masks = _by_image(coco["annotations"])
        best = [_best(masks[infos[name]["id"]], BEST) for name in names]
        pairs = [(image, _as_rles(one, *image.shape[:2])) for image, one in zip(images, best, strict=True)]
        strips.append(Strip(label, [_drawn(*pair) for pair in pairs]))
    return strips


def sampled(masks: Path, count: int, names: Sequence[str] = ()) -> dict[str, Any]:
    """Picks images and their masks from a file of pseudo labels, or from its store, in COCO format.

    Takes the images `names`, or `count` evenly spread ones. Warns of a damaged store, and reads the file.
    """
    store = open_store(masks)
    if store is not None:
        try:
            return _of_store(store, count, names)
        except (ValueError, OSError) as error:
            warnings.warn(f"{error}. {masks} is read instead.", stacklevel=2)
    coco = json.loads(masks.read_text())
    images = {image["file_name"]: image for image in coco["images"]}
    by_image = _by_image(coco["annotations"])
    names = names or spread(list(images), count)
    entries = [(images[name], by_image[images[name]["id"]]) for name in names if name in images]
    return _joined(coco.get("info"), coco["categories"], entries)


def _of_store(store: MaskStore, count: int, names: Sequence[str]) -> dict[str, Any]:
    rows = {name: row for row, name in enumerate(store.file_names())}
    names = names or spread(list(rows), count)
    entries = [store.entry(rows[name]) for name in names if name in rows]
    return _joined(store.info, store.categories, entries)


def _joined(info: Any, categories: list[dict[str, Any]], entries: Sequence[tuple]) -> dict[str, Any]:
    return {
        "info": info,
        "categories": categories,
        "images": [image for image, _ in entries],
        "annotations": [one for _, annotations in entries for one in annotations],
    }


def prediction_samples(plan: Plan, training: str) -> list[Strip]:
    """The annotated objects of some validation images, and each row's predictions; empty without images.

    All rows are shown with the seed that most of them have finished. The number of predictions drawn is the
    number of objects in the image, those with the best scores. The images are those where the mean over rows
    of `_mean_iou` is best, typical and worst, `samples / 2` of each.
    """
    shown = _shown(plan, training)
    if not shown:
        return []
    first = shown[0][1]
    folder, annotations = place(first, "val_images"), place(first, "val_annotations")
    if not folder.is_dir() or not annotations.is_file():
        return []
    coco = load_coco(annotations)
    objects = _by_image(one for one in coco["annotations"] if not one["iscrowd"])
    infos = [info for info in coco["images"] if objects[info["id"]]]
    sizes = {info["id"]: (info["height"], info["width"]) for info in infos}
    truth = {key: _as_rles(objects[key], *size) for key, size in sizes.items()}
    # Empty if classes are merged, or there is only one: then a name tells nothing.
    names = {one["id"]: one["name"] for one in coco["categories"]} if _has_classes(first) else {}
    predicted: dict[str, dict[Any, list[dict[str, Any]]]] = {}
    for row, run in shown:
        found = _by_image(json.loads((run.folder / PREDICTED).read_text()))
        best = {key: _best(found[key], len(truth[key])) for key in sizes}
        predicted[row.name] = {key: _as_rles(best[key], *size) for key, size in sizes.items()}
    scores = {
        (row, key): _mean_iou(masks, truth[key], same_class=bool(names))
        for row, by_image in predicted.items()
        for key, masks in by_image.items()
    }
    means = {key: mean(scores[row, key] for row in predicted) for key in sizes}
    infos.sort(key=lambda info: (-means[info["id"]], info["file_name"]))
    chosen = _best_typical_worst(infos, max(plan.experiment.samples // 2, 1))
    if not chosen or not all((folder / info["file_name"]).is_file() for info, _ in chosen):
        return []
    images = [(info["id"], which, annotated_image(info, folder)) for info, which in chosen]
    drawn = [_drawn(image, truth[key], None, names, which) for key, which, image in images]
    strips = [Strip("annotated objects", drawn)]
    for row, run in shown:
        drawn = [
            _drawn(image, predicted[row.name][key], truth[key], names, f"IoU {scores[row.name, key]:.2f}")
            for key, _, image in images
        ]
        strips.append(Strip(row.label, drawn, row.name, run.seed))
    return strips


def _shown(plan: Plan, training: str) -> list[tuple[Row, Run]]:
    """The rows with predictions of the same images, and their runs with the seed that most have finished."""
    ready = []
    for seed in plan.seeds:
        runs = [(row, plan.of(row.name, training, seed)) for row in plan.experiment.rows]
        finished = [(row, run) for row, run in runs if run is not None and run.finished]
        ready.append([(row, run) for row, run in finished if (run.folder / PREDICTED).is_file()])
    most = max(ready, key=len)
    return [
        (row, run) for row, run in most if run.spec["val_annotations"] == most[0][1].spec["val_annotations"]
    ]


def _has_classes(run: Run) -> bool:
    return len(run.result().get("details", {}).get("classes", ())) > 1


def _best_typical_worst(ranked: list[Any], count: int) -> list[tuple[Any, str]]:
    """The first, middle and last `count` values, or fewer so that none comes twice."""
    count = min(count, len(ranked) // 3)
    if not count:
        return list(zip(ranked, ("best", "worst"), strict=False))
    middle = (len(ranked) - count) // 2
    parts = {"best": ranked[:count], "typical": ranked[middle : middle + count], "worst": ranked[-count:]}
    return [(value, which) for which, values in parts.items() for value in values]


def _mean_iou(found: list[dict[str, Any]], objects: list[dict[str, Any]], *, same_class: bool) -> float:
    """The best IoU of each object with a predicted mask (of its class), averaged over objects."""
    if not found:
        return 0.0
    iou = _ious(found, objects)
    if same_class:
        classes = [np.array([one["category_id"] for one in each]) for each in (found, objects)]
        iou[classes[0][:, None] != classes[1]] = 0
    return float(iou.max(axis=0).mean())


def _ious(found: list[dict[str, Any]], objects: list[dict[str, Any]]) -> np.ndarray:
    masks, others = ([one["segmentation"] for one in each] for each in (found, objects))
    return np.asarray(coco_mask.iou(masks, others, [0] * len(others)))


def _drawn(
    image: np.ndarray,
    masks: list[dict[str, Any]],
    truth: list[dict[str, Any]] | None = None,
    names: Mapping[Any, str] = MappingProxyType({}),
    note: str = "",
) -> Picture:
    """The image with masks over it, and their classes if `names` are given.

    With `truth`, a mask has the colour of the object with the highest IoU, white if that is not above 0.5.
    """
    colours = list(PALETTE[np.arange(len(masks)) % len(PALETTE)])
    if truth is not None and masks:
        iou = _ious(masks, truth)
        colours = [PALETTE[one.argmax() % len(PALETTE)] if one.max() > 0.5 else WHITE for one in iou]
    pixels = [coco_mask.decode(one["segmentation"]).astype(bool) for one in masks]
    named = []
    for one, colour in zip(masks[: NAMED if names else 0], colours, strict=False):
        score = "" if truth is None else f" {one['score']:.2f}"
        named.append(("#{:02x}{:02x}{:02x}".format(*colour), f"{names[one['category_id']]}{score}"))
    more = len(masks) - len(named) if names else 0
    return Picture(data_uri(overlay(image, pixels, colours)), note, named, more)


def _as_rles(annotations: list[dict[str, Any]], height: int, width: int) -> list[dict[str, Any]]:
    """The annotations of an image with compressed run lengths."""
    return [dict(one, segmentation=to_rle(one["segmentation"], height, width)) for one in annotations]


def _best(annotations: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    return sorted(annotations, key=lambda one: -one.get("score", 0))[:count]


def _by_image(annotations: Iterable[dict[str, Any]]) -> defaultdict[Any, list[dict[str, Any]]]:
    found = defaultdict(list)
    for one in annotations:
        found[one["image_id"]].append(one)
    return found
