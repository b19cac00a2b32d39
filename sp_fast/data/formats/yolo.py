"""YOLO segmentation: a text file per image, a line per object: class x0 y0 x1 y1 ... in 0..1.

Ultralytics joins the parts of an object by bridges without width, which cover no pixels when drawn.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import yaml

from sp_fast.data.faults import counted
from sp_fast.data.formats.builder import Builder, images_by_stem, lines_of
from sp_fast.data.images import image_size

_CONFIGS = ("data.yaml", "data.yml", "dataset.yaml", "../data.yaml", "../../data.yaml")


def read(path: Path, images: Path) -> dict[str, Any]:
    """Reads labels beside data.yaml or in a folder; an image without a file of labels has no objects."""
    config, folder = (path, _labels_of(images)) if path.is_file() else (_config_of(path), path)
    names = _names(config) if config else _listed_names(folder)
    builder = Builder(names.values())
    labels = {file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.txt")}
    named = images_by_stem(images)
    found, unnamed = 0, set()
    for stem, name in named.items():
        file = folder / f"{stem}.txt"
        height, width = image_size(images / name)
        builder.image(name, height, width)
        if file.is_file():
            found += 1
            for class_id, polygon in _lines(file, height, width):
                if class_id not in names:
                    unnamed.add(class_id)
                builder.object(names.get(class_id, f"class {class_id}"), [polygon])
    if not found:
        raise ValueError(f"{folder}: expected a .txt file of labels for each image of {images}, got none")
    if alone := sorted(labels - named.keys() - {"classes"}):
        files = f"{counted(len(alone), '.txt file')} without an image: {', '.join(alone[:5])}"
        warnings.warn(f"{folder}: left out {files}", stacklevel=2)
    if unnamed:
        where = config or f"{folder / 'classes.txt'} (a line for each class, from class 0), or in data.yaml"
        some = ", ".join(f"class {number}" for number in sorted(unnamed)[:5])
        warnings.warn(f"{folder}: classes without names: {some}; name them in {where}", stacklevel=2)
    return builder.coco()


def _labels_of(images: Path) -> Path:
    """The folder of labels: as in Ultralytics, the last `images` in the path replaced by `labels`."""
    parts = list(images.resolve().parts)
    places = [k for k, part in enumerate(parts) if part == "images"]
    folder = Path(*parts[: places[-1]], "labels", *parts[places[-1] + 1 :]) if places else images
    return folder if folder.is_dir() else images


def _config_of(folder: Path) -> Path | None:
    return next((folder / name for name in _CONFIGS if (folder / name).is_file()), None)


def _names(config: Path) -> dict[int, str]:
    try:
        names = yaml.safe_load(config.read_text())["names"]
        pairs = names.items() if isinstance(names, dict) else enumerate(names)
        return {int(number): str(name) for number, name in pairs}
    except (yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError):
        raise ValueError(f"{config}: expected YOLO's data.yaml with 'names', a list or dict") from None


def _listed_names(folder: Path) -> dict[int, str]:
    file = folder / "classes.txt"
    return dict(enumerate(lines_of(file))) if file.is_file() else {}


def _lines(file: Path, height: int, width: int) -> list[tuple[int, list[float]]]:
    objects = []
    for number, line in enumerate(lines_of(file), start=1):
        values = line.split()
        if not values:
            continue
        where = f"{file}, line {number}"
        if len(values) == 5:
            raise ValueError(f"{where}: expected a polygon, got a box: labels for detection have no masks")
        if len(values) < 7 or len(values) % 2 == 0:
            raise ValueError(f"{where}: expected 'class x0 y0 x1 y1 x2 y2 ...', got {len(values)} values")
        try:
            class_id = int(values[0])
            points = [float(value) for value in values[1:]]
        except ValueError:
            raise ValueError(f"{where}: expected numbers, got {line[:60]!r}") from None
        if max(points) > 2:
            raise ValueError(f"{where}: expected coordinates in 0..1, got {max(points):g}")
        scaled = [value * (height if k % 2 else width) for k, value in enumerate(points)]
        objects.append((class_id, scaled))
    return objects
