"""Cityscapes: images of instance numbers (class x 1000 + number), or polygons, later ones in front."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from sp_fast.data.cityscapes import CLASSES
from sp_fast.data.coco import read_json
from sp_fast.data.formats.builder import Builder, check_size, images_by_stem, masks_of, read_map

INSTANCES, POLYGONS = "*_instanceIds.png", "*_polygons.json"
_IDS = {name: number for number, name in CLASSES.items()}


def read(path: Path, images: Path) -> dict[str, Any]:
    """Reads the images of instance numbers, or the polygons where there are none."""
    files = sorted(path.rglob(INSTANCES)) or sorted(path.rglob(POLYGONS))
    if not files:
        raise ValueError(f"{path}: expected files {INSTANCES} or {POLYGONS} of Cityscapes, got none")
    names = images_by_stem(images)
    builder = Builder(CLASSES.values())
    for file in files:
        labels = read_map(file) if file.suffix == ".png" else _drawn(file)
        # aachen_000000_000019_gtFine_instanceIds.png is of aachen_000000_000019_leftImg8bit.png.
        stem = file.name.rsplit("_", 2)[0]
        inside = file.parent.relative_to(path)
        wanted = ((inside / name).as_posix() for name in (f"{stem}_leftImg8bit", stem))
        name = next((names[stem] for stem in wanted if stem in names), None)
        builder.image(name or (inside / f"{stem}_leftImg8bit.png").as_posix(), *labels.shape)
        for value, _, runs in masks_of(labels):
            crowd = value < 1000
            class_id = value if crowd else value // 1000
            if class_id in CLASSES:
                builder.object(CLASSES[class_id], runs, crowd)
    return builder.coco()


def _drawn(file: Path) -> np.ndarray:
    """The image of instance numbers that Cityscapes' own script draws of the polygons."""
    value = read_json(file)
    try:
        width, height = value["imgWidth"], value["imgHeight"]
        shapes = [(one["label"], [(x, y) for x, y in one["polygon"]]) for one in value["objects"]]
        check_size(file, height, width)
        image = Image.new("I", (width, height), 0)
        pen = ImageDraw.Draw(image)
        numbers = dict.fromkeys(CLASSES, 0)
        for label, points in shapes:
            class_id = _IDS.get(label, _IDS.get(label.removesuffix("group")))
            number = class_id or 0  # others, such as a pole in front of a car, cover what is behind them
            if class_id and label in _IDS:
                number = 1000 * class_id + numbers[class_id]
                numbers[class_id] += 1
            if len(points) > 1:
                pen.polygon(points, fill=number)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"{file}: expected Cityscapes' polygons, got {error!r}") from None
    return np.asarray(image)
