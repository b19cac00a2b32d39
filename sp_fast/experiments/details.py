"""What a training's last predictions are worth by size and by class of the objects."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from sp_fast.data.coco import load_coco
from sp_fast.data.evaluation import evaluate_coco
from sp_fast.proposals.scores import SIZES

# Heading -> name in the values of evaluate_coco.
_VALUES = {"AP": "mAP", "AP50": "mAP_50", "AR": "AR@100"}
_BY_SIZE = {"small": "s", "medium": "m", "large": "l"}


def details(predictions: Path, annotations: str | Path, *, class_agnostic: bool) -> dict[str, Any]:
    """Measures predicted masks, in COCO's results format, against the annotations of their images.

    Returns:
        `sizes`: number of objects, AP and AR of small, medium and large objects; `classes`: number of
        objects, AP, AP50 and AR of each class that has objects, empty if all are taken as one class. Values
        are in 0..1, None where there are no objects. Crowds are not counted.
    """
    truth, found = load_coco(annotations), json.loads(predictions.read_text())
    values = evaluate_coco(truth, found, class_agnostic=class_agnostic)
    areas = [one["area"] for one in truth["annotations"] if not one["iscrowd"]]
    sizes = {}
    for size, ending in _BY_SIZE.items():
        low, high = SIZES[size]
        objects = sum(low <= area < high for area in areas)
        sizes[size] = {"objects": objects, "AP": values[f"mAP_{ending}"], "AR": values[f"AR_{ending}"]}
    by_class = {} if class_agnostic else _by_class(truth, found)
    return {"sizes": _without_nan(sizes), "classes": _without_nan(by_class)}


def _by_class(truth: dict[str, Any], found: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    objects, predicted = (_by_category(entries) for entries in (truth["annotations"], found))
    measured = {}
    for category in truth["categories"]:
        mine, theirs = objects[category["id"]], predicted[category["id"]]
        count = sum(not one["iscrowd"] for one in mine)
        if count:
            # Other images change nothing, but take time.
            used = {one["image_id"] for one in (*mine, *theirs)}
            images = [one for one in truth["images"] if one["id"] in used]
            one_class = {"images": images, "categories": [category], "annotations": mine}
            values = evaluate_coco(one_class, theirs)
            entry = {heading: values[name] for heading, name in _VALUES.items()}
            measured[category["name"]] = {"objects": count, **entry}
    return measured


def _by_category(entries: list[dict[str, Any]]) -> dict[Any, list[dict[str, Any]]]:
    found = defaultdict(list)
    for one in entries:
        found[one["category_id"]].append(one)
    return found


def _without_nan(entries: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    return {
        key: {name: None if math.isnan(value) else value for name, value in entry.items()}
        for key, entry in entries.items()
    }
