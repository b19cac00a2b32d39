"""Pascal VOC masks: images of object numbers (SegmentationObject) and of classes (SegmentationClass)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sp_fast.data.formats.builder import Builder, images_by_stem, lines_of, masks_of, read_map

OBJECTS, CLASSES = "SegmentationObject", "SegmentationClass"
# fmt: off
_NAMES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
# fmt: on
_VOID, _VOID_COLOUR = 255, 0xE0E0C0  # pixels at the border of objects that belong to none


def read(path: Path, images: Path) -> dict[str, Any]:
    """Reads the label images of a folder; `labelmap.txt` names the classes (as CVAT writes it), or VOC's."""
    if not (path / OBJECTS).is_dir() or not (path / CLASSES).is_dir():
        raise ValueError(f"{path}: expected the folders {OBJECTS} and {CLASSES} of Pascal VOC")
    colours = _labelmap(path / "labelmap.txt")
    builder = Builder(colours.values() if colours else _NAMES)
    names = images_by_stem(images)
    for file in sorted((path / OBJECTS).rglob("*.png")):
        stem = file.relative_to(path / OBJECTS).with_suffix("").as_posix()
        objects, classes = read_map(file), _classes(path / CLASSES / f"{stem}.png", bool(colours))
        if objects.shape != classes.shape:
            raise ValueError(f"{file}: expected the size of {CLASSES}, {classes.shape}, got {objects.shape}")
        builder.image(names.get(stem, f"{stem}.jpg"), *objects.shape)
        objects[(objects == _VOID) | (objects == _VOID_COLOUR)] = 0
        for _, mask, runs in masks_of(objects):
            values, numbers = np.unique(classes[mask], return_counts=True)
            value = int(values[numbers.argmax()])
            builder.object(colours[value] if value in colours else _name(value), runs)
    return builder.coco()


def _classes(file: Path, coloured: bool) -> np.ndarray:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: expected the classes of the objects, got no such file")
    return read_map(file, coloured=coloured)


def _name(value: int) -> str:
    return _NAMES[value - 1] if 0 < value <= len(_NAMES) else f"class {value}"


def _labelmap(file: Path) -> dict[int, str]:
    """Name of each colour, from lines such as `cat:64,0,0::`, without the background."""
    if not file.is_file():
        return {}
    names = {}
    for line in lines_of(file):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            name, colour = line.split(":")[:2]
            red, green, blue = map(int, colour.split(","))
        except ValueError:
            raise ValueError(f"{file}: expected lines of name:red,green,blue::, got {line[:60]!r}") from None
        names[65536 * red + 256 * green + blue] = name
    return {colour: name for colour, name in names.items() if colour and name != "background"}
