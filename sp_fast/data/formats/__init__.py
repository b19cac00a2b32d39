"""Other label formats, read as COCO-format dicts: YOLO segmentation, LabelMe, Pascal VOC masks, Cityscapes.

Holes and disjoint parts are kept. Libraries were tried first: supervision rounds polygons to whole pixels and
joins the parts of a YOLO object by a line, and it has no reader for masks of Pascal VOC and Cityscapes.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sp_fast.data.coco import read_json
from sp_fast.data.formats import cityscapes, labelme, voc, yolo

_READERS = {
    "yolo": yolo.read,
    "labelme": labelme.read,
    "voc": voc.read,
    "cityscapes": cityscapes.read,
}
FORMATS = ("coco", *_READERS)


def to_coco(
    path: str | os.PathLike[str], images: str | os.PathLike[str], format: str = "auto"
) -> dict[str, Any]:
    """Read labels in any of FORMATS as a COCO-format dict, with ids from 1.

    The dict is not checked: see `check_coco`.

    Args:
        path: COCO file; YOLO's data.yaml or folder of label files; folder of LabelMe's files; Pascal VOC's
            folder that holds SegmentationObject and SegmentationClass; Cityscapes' gtFine or a split of it.
        images: folder of the images.
        format: one of FORMATS, or "auto" for what `detect_format` says.

    Raises:
        FileNotFoundError, NotADirectoryError: no such file or folder.
        ValueError: unknown format, or labels that cannot be read; the message names the file.
    """
    path, images = Path(path), Path(images)
    if format == "auto":
        format = detect_format(path)
    if format == "coco":
        return read_json(path)
    if format not in FORMATS:
        raise ValueError(f"format: expected auto, {', '.join(FORMATS)}, got {format!r}")
    if not path.exists():
        raise FileNotFoundError(f"no such labels: {path}")
    if not images.is_dir():
        raise NotADirectoryError(f"images: expected a folder of images, got {images}")
    coco = _READERS[format](path, images)
    if not coco["images"]:
        raise ValueError(f"{path}: no labels of {images} in the format {format}")
    return coco


def detect_format(path: str | os.PathLike[str]) -> str:
    """The format of a file or folder of labels, by the names in it.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: nothing of a known format is there.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such labels: {path}")
    if path.is_file():
        return "yolo" if path.suffix.lower() in (".yaml", ".yml") else "coco"
    if (path / voc.OBJECTS).is_dir():
        return "voc"
    for pattern in (cityscapes.INSTANCES, cityscapes.POLYGONS):
        if any(path.rglob(pattern)):
            return "cityscapes"
    if any(_is_labelme(file) for file in sorted(path.rglob("*.json"))[:5]):
        return "labelme"
    if any(path.rglob("*.txt")):
        return "yolo"
    raise ValueError(
        f"{path}: expected labels of YOLO (.txt), LabelMe (.json with 'shapes'), Pascal VOC ({voc.OBJECTS}/) "
        f"or Cityscapes ({cityscapes.INSTANCES}), got none of them; name a COCO file itself"
    )


def _is_labelme(file: Path) -> bool:
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and "shapes" in value
