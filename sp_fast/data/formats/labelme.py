"""LabelMe: a JSON file per image, with shapes; those of the same label and group_id are one object."""

from __future__ import annotations

import base64
import io
import math
import warnings
from collections import Counter
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from sp_fast.data.coco import read_json
from sp_fast.data.formats.builder import Builder, check_size
from sp_fast.data.rle import run_lengths, to_rle
from sp_fast.data.structure import problem_of_mask

_CORNERS = 64  # of the polygon that stands for a circle


def read(path: Path, images: Path) -> dict[str, Any]:
    """Reads all JSON files with shapes in a folder; points and lines are left out, with a warning."""
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path]
    contents = [(file, content) for file in files if (content := _content(file)) is not None]
    labels = {str(shape.get("label")) for _, content in contents for shape in content["shapes"]}
    builder = Builder(sorted(labels))
    left_out: Counter[str] = Counter()
    for file, content in contents:
        height, width = content.get("imageHeight"), content.get("imageWidth")
        builder.image(_image_name(file, path, content, images), height, width)
        for label, parts in _objects(file, content["shapes"], left_out):
            builder.object(label, _joined(file, parts, height, width))
    if left_out:
        said = ", ".join(f"{number} of the type {kind}" for kind, number in left_out.items())
        warnings.warn(f"{path}: left out shapes that have no mask: {said}", stacklevel=2)
    return builder.coco()


def _content(file: Path) -> dict[str, Any] | None:
    value = read_json(file)
    if not isinstance(value, dict) or "shapes" not in value:
        return None
    shapes = value["shapes"]
    if not isinstance(shapes, list) or not all(isinstance(shape, dict) for shape in shapes):
        raise ValueError(f"{file}: shapes: expected a list of dicts, got {type(shapes).__name__}")
    return value


def _image_name(file: Path, labels: Path, content: dict[str, Any], images: Path) -> str:
    """The image's path in its folder: in the sub-folder of its JSON file, if it is there, or by name."""
    name = PureWindowsPath(str(content.get("imagePath") or file.with_suffix(".jpg").name)).name
    inside = file.parent.relative_to(labels) if labels.is_dir() else Path()
    return (inside / name).as_posix() if (images / inside / name).is_file() else name


def _objects(file: Path, shapes: list[dict[str, Any]], left_out: Counter[str]) -> list[tuple[str, list[Any]]]:
    """Label and parts (polygons or run lengths at their place) of each object."""
    objects: dict[Any, tuple[str, list[Any]]] = {}
    for number, shape in enumerate(shapes):
        kind, label, group = (
            shape.get("shape_type", "polygon"),
            str(shape.get("label")),
            shape.get("group_id"),
        )
        try:
            points = np.asarray(shape["points"], dtype=float).reshape(-1, 2)
            if not np.isfinite(points).all():
                raise ValueError("numbers that are not finite")
            part = _part(kind, points, shape)
        except (ArithmeticError, LookupError, TypeError, ValueError, OSError, SyntaxError) as error:
            raise ValueError(
                f"{file}: shapes[{number}]: expected the points of a {kind}, got {error}"
            ) from None
        if part is None:
            left_out[str(kind)] += 1
            continue
        key = (label, str(group)) if group is not None else number
        objects.setdefault(key, (label, []))[1].append(part)
    return list(objects.values())


def _part(kind: Any, points: np.ndarray, shape: dict[str, Any]) -> Any:
    if kind == "polygon":
        return points.ravel().tolist()
    if kind == "rectangle":
        if len(points) < 2:
            raise ValueError(f"{len(points)} points")
        (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)  # of two or four corners
        return [float(value) for value in (left, top, right, top, right, bottom, left, bottom)]
    if kind == "circle":
        angles = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
        radius = math.dist(points[0], points[1])
        return (points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)).ravel().tolist()
    if kind == "mask":
        with Image.open(io.BytesIO(base64.b64decode(shape["mask"]))) as image:
            left, top = (max(int(value), 0) for value in points[0])
            return (left, top), np.asarray(image.convert("L")) > 0
    return None


def _joined(file: Path, parts: list[Any], height: Any, width: Any) -> Any:
    """One segmentation: the polygons, or run lengths if a part is a mask."""
    if not any(isinstance(part, tuple) for part in parts):
        return parts
    check_size(file, height, width)
    whole: np.ndarray = np.zeros((height, width), dtype=bool)
    for part in parts:
        if isinstance(part, tuple):
            (left, top), mask = part
            place = whole[top : top + len(mask), left : left + mask.shape[1]]
            place |= mask[: place.shape[0], : place.shape[1]]
        else:
            if problem := problem_of_mask([part], height, width):
                raise ValueError(f"{file}: points: expected {problem[1]}, got {problem[2]}")
            whole |= coco_mask.decode(to_rle([part], height, width)).astype(bool)
    return run_lengths(whole[None])[0]
