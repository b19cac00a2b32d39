"""Sample images for the page: pseudo labels and predictions, drawn over the image."""

from __future__ import annotations

import base64
import io
import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from sp_fast.data.coco import load_coco
from sp_fast.data.images import read_image
from sp_fast.data.rle import to_rle
from sp_fast.experiments.plan import Plan, Run
from sp_fast.experiments.worker import PREDICTIONS

# Okabe and Ito's, told apart on any image.
_PALETTE = np.array(
    [
        (230, 159, 0),
        (86, 180, 233),
        (0, 158, 115),
        (240, 228, 66),
        (0, 114, 178),
        (213, 94, 0),
        (204, 121, 167),
    ]
)
_WHITE = np.array((255, 255, 255))
_SIDE = 360
BEST = 8
MASKS = "masks.json"
PREDICTED = f"{PREDICTIONS}.segm.json"


@dataclass(frozen=True)
class Strip:
    """Pictures side by side, one per sample image.

    Attributes:
        label: what is drawn.
        pictures: data URIs.
        row: name of the row whose predictions they are.
        seed: that the row was trained with.
    """

    label: str
    pictures: list[str]
    row: str | None = None
    seed: int | None = None


def place(text: str, run: Run) -> Path:
    """A path of the run's spec, with `{data}` and `{seed}` filled in."""
    data = str(run.folder.parent / run.needs.get("data", ""))
    return Path(text.replace("{data}", data).replace("{seed}", str(run.seed)))


def overlay(image: np.ndarray, masks: Sequence[np.ndarray], colours: Sequence[np.ndarray]) -> np.ndarray:
    """The image at a longer side of 360 pixels and paler, each mask tinted and outlined; the smallest on top.

    White masks are hardly tinted, since they would hide what is below.

    Args:
        image: uint8 [H, W, 3].
        masks: bool [H, W] each.
        colours: RGB of 0 to 255 for each mask.

    Returns:
        uint8 [h, w, 3].
    """
    big: np.ndarray = _resized(image).astype(np.float32)
    # Colours of the image would be taken for those of masks.
    grey = big.mean(axis=2, keepdims=True)
    big = grey + 0.3 * (big - grey)
    size = big.shape[1], big.shape[0]
    for k in sorted(range(len(masks)), key=lambda k: -masks[k].sum()):
        soft = Image.fromarray(masks[k].astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
        mask = np.asarray(soft) >= 128
        inner = np.pad(mask, 2)
        inner = inner[:-4, 2:-2] & inner[4:, 2:-2] & inner[2:-2, :-4] & inner[2:-2, 4:]
        tint = 0.1 if colours[k] is _WHITE else 0.45
        big[mask] = (1 - tint) * big[mask] + tint * colours[k]
        big[mask & ~inner] = colours[k]
    return np.rint(big).astype(np.uint8)


def proposal_samples(runs: dict[str, Run], count: int) -> list[Strip]:
    """The best pseudo labels of each kind on the same images; empty without finished runs or images.

    Args:
        runs: finished runs by label.
        count: how many images.
    """
    strips: list[Strip] = []
    names: list[str] = []
    for label, run in runs.items():
        folder = place(run.spec["images"], run)
        if not folder.is_dir():
            continue
        coco = json.loads((run.folder / MASKS).read_text())
        ids = {info["file_name"]: info["id"] for info in coco["images"]}
        if not strips:
            names = _spread(list(ids), count)
            if not names:
                return []
            strips.append(Strip("image", [_uri(_resized(read_image(folder / name))) for name in names]))
        masks = _by_image(coco["annotations"])
        pictures = []
        for name in names:
            best = sorted(masks.get(ids.get(name), []), key=lambda one: -one.get("score", 0))[:BEST]
            colours = [_PALETTE[k % len(_PALETTE)] for k in range(len(best))]
            pictures.append(_drawn(read_image(folder / name), best, colours))
        strips.append(Strip(label, pictures))
    return strips


def prediction_samples(plan: Plan, training: str) -> list[Strip]:
    """The annotated objects of some validation images, and each row's predictions; empty without images.

    All rows are shown with the seed that most of them have finished. Of each row as many of its best
    predictions are drawn as the image has objects, in the colour of the object that they overlap most, or
    white where that IoU is not above 0.5.
    """
    rows = plan.experiment.rows
    by_seed = [{row.name: plan.of(row.name, training, seed) for row in rows} for seed in plan.seeds]
    ready = [
        {
            name: run
            for name, run in runs.items()
            if run and run.finished and (run.folder / PREDICTED).is_file()
        }
        for runs in by_seed
    ]
    runs = max(ready, key=len)
    if not runs:
        return []
    first = next(iter(runs.values()))
    folder = place(first.spec["val_images"], first)
    if not folder.is_dir():
        return []
    coco = load_coco(place(first.spec["val_annotations"], first))
    objects = _by_image(one for one in coco["annotations"] if not one["iscrowd"])
    # A few objects each: none shows nothing, a crowd cannot be read.
    known = [info for info in coco["images"] if 2 <= len(objects.get(info["id"], [])) <= 8]
    infos = _spread(known or coco["images"], plan.experiment.samples)
    images = {info["id"]: read_image(folder / info["file_name"]) for info in infos}
    truth = {key: _rles(objects.get(key, []), image) for key, image in images.items()}
    drawn = [
        _drawn(images[key], truth[key], _PALETTE[np.arange(len(truth[key])) % len(_PALETTE)])
        for key in images
    ]
    strips = [Strip("annotated objects", drawn)]
    for row in rows:
        run = runs.get(row.name)
        if run is None or run.spec["val_annotations"] != first.spec["val_annotations"]:
            continue
        predicted = _by_image(json.loads((run.folder / PREDICTED).read_text()))
        pictures = []
        for key, image in images.items():
            best = sorted(predicted.get(key, []), key=lambda one: -one["score"])[: len(truth[key])]
            pictures.append(_drawn(image, best, _matched(best, truth[key])))
        strips.append(Strip(row.label, pictures, row.name, run.seed))
    return strips


def _matched(predicted: list[dict[str, Any]], truth: list[dict[str, Any]]) -> list[np.ndarray]:
    """The colour of the object that each prediction covers, or white."""
    if not predicted or not truth:
        return [_WHITE] * len(predicted)
    iou = np.asarray(coco_mask.iou([one["segmentation"] for one in predicted], truth, [0] * len(truth)))
    return [_PALETTE[one.argmax() % len(_PALETTE)] if one.max() > 0.5 else _WHITE for one in iou]


def _by_image(annotations: Iterable[dict[str, Any]]) -> dict[Any, list[dict[str, Any]]]:
    found = defaultdict(list)
    for one in annotations:
        found[one["image_id"]].append(one)
    return dict(found)


def _spread(values: list[Any], count: int) -> list[Any]:
    """So many of the values, evenly spread."""
    count = min(count, len(values))
    return [values[(2 * k + 1) * len(values) // (2 * count)] for k in range(count)]


def _rles(annotations: Iterable[dict[str, Any]], image: np.ndarray) -> list[dict[str, Any]]:
    return [to_rle(one["segmentation"], *image.shape[:2]) for one in annotations]


def _drawn(image: np.ndarray, masks: Sequence[dict[str, Any]], colours: Sequence[np.ndarray]) -> str:
    """The image with masks (annotations or run lengths) over it, as a data URI."""
    rles = [to_rle(one.get("segmentation", one), *image.shape[:2]) for one in masks]
    return _uri(overlay(image, [coco_mask.decode(rle).astype(bool) for rle in rles], colours))


def _resized(image: np.ndarray) -> np.ndarray:
    scale = _SIDE / max(image.shape[:2])
    size = max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def _uri(picture: np.ndarray) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "webp", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
