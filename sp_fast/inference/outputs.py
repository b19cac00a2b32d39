"""Files of one image's instances, in formats of other tools."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sp_fast.files import replacing, write_json, write_text
from sp_fast.inference.instances import Instances
from sp_fast.inference.polygons import joined, polygons

OVERLAY_SIDE = 1600  # longest side of an overlay picture, in pixels
# Sub-folder and suffix of each kind of file.
KINDS = {
    "overlays": ("overlays", ".jpg"),
    "png": ("masks", ".png"),
    "yolo": ("yolo", ".txt"),
    "labelme": ("labelme", ".json"),
}


def write_outputs(
    kinds: Sequence[str], out: Path, stem: str, image: np.ndarray, path: Path, found: Instances
) -> None:
    """Writes files of an image's instances under the folder `out` (atomic writes).

    `overlays`: a JPEG picture. `png`: a 16-bit PNG whose pixels are 0, or 1 for the best instance, 2 for the
    next and so on; where masks overlap, the better is seen. `yolo`: YOLO segmentation, one line for each
    instance; disjoint parts are joined by a line there and back, as Ultralytics does. `labelme`: LabelMe's
    JSON with a polygon for each part; the parts of an instance share a `group_id`.

    Args:
        kinds: keys of KINDS.
        out: folder.
        stem: path of the files below their sub-folders, without suffix.
        image: RGB, uint8 [H, W, 3].
        path: file of the image.
        found: its instances.
    """
    writers = {"overlays": _overlay, "png": _png, "yolo": _yolo, "labelme": _labelme}
    for kind in kinds:
        folder, suffix = KINDS[kind]
        writers[kind](out / folder / f"{stem}{suffix}", image, path, found)


def _overlay(file: Path, image: np.ndarray, path: Path, found: Instances) -> None:
    picture = found.draw(image, min(OVERLAY_SIDE, max(image.shape[:2])))
    with replacing(file) as handle:
        picture.save(handle, "jpeg", quality=88)


def _png(file: Path, image: np.ndarray, path: Path, found: Instances) -> None:
    ids = np.zeros(image.shape[:2], dtype=np.uint16)
    for k in reversed(range(len(found))):
        ids[found.masks[k]] = k + 1
    with replacing(file) as handle:
        Image.fromarray(ids).save(handle, "png")


def _yolo(file: Path, image: np.ndarray, path: Path, found: Instances) -> None:
    height, width = image.shape[:2]
    lines = []
    for mask, label in zip(found.masks, found.labels, strict=True):
        points = joined(polygons(mask)) / (width, height)
        lines.append(f"{label} {' '.join(f'{value:.6f}' for value in points.ravel())}\n")
    write_text("".join(lines), file)


def _labelme(file: Path, image: np.ndarray, path: Path, found: Instances) -> None:
    shapes = [
        {
            "label": name,
            "points": points.tolist(),
            "group_id": k + 1,
            "description": f"score {score:.4f}",
            "shape_type": "polygon",
            "flags": {},
        }
        for k, (mask, name, score) in enumerate(zip(found.masks, found.names, found.scores, strict=True))
        for points in polygons(mask)
    ]
    content = {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": Path(os.path.relpath(path, file.parent)).as_posix(),
        "imageData": None,
        "imageHeight": image.shape[0],
        "imageWidth": image.shape[1],
    }
    write_json(content, file)
