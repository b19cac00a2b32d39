"""CTW1500's labels of curved text (Yuliang-Liu/Curve-Text-Detector) as COCO-format annotations."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from pycocotools import mask as coco_mask

from sp_fast.data.images import image_size, list_images
from sp_fast.data.prepared import listed
from sp_fast.data.rle import to_rle

ILLEGIBLE = "###"  # the text of what is to be ignored
_POINTS = 28  # numbers of a polygon with 14 corners


def convert_ctw1500(
    images: str | os.PathLike[str], labels: str | os.PathLike[str], *, illegible: str = "keep"
) -> dict[str, Any]:
    """COCO-format annotations of CTW1500's training or test images, of one class, `text`.

    Each image has a label file of its name (`0001.xml`), or with `000` before it (`0001001.txt`), in one of
    the published forms: XML with `segs` of 28 integers; lines of 28 integers, `####` and the text; lines of
    32 integers, of which the first two are added to the 14 pairs after the fourth. The labels are in stored
    pixels: the EXIF orientation of the images is to be ignored (`info.exif` says so to `InstanceDataset`).
    Boxes and areas are those of the masks.

    Args:
        images: folder of images.
        labels: folder of label files.
        illegible: "keep" treats the text `###` like any other; "ignore" makes it a crowd, which is not
            trained on and does not count in evaluation.

    Raises:
        FileNotFoundError: images without a label file.
        BrokenImageError: an image that cannot be read.
        ValueError: label files without image, or in another form; the message names file and field.
    """
    if illegible not in ("keep", "ignore"):
        raise ValueError(f"illegible: expected 'keep' or 'ignore', got {illegible!r}")
    folder = Path(images)
    records: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (path, label) in enumerate(_pairs(folder, Path(labels)), start=1):
        height, width = image_size(path, exif="ignore")
        name = path.relative_to(folder).as_posix()
        records.append({"id": number, "file_name": name, "height": height, "width": width})
        for polygon, text in _read(label):
            rle = to_rle([polygon], height, width)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "segmentation": [polygon],
                    "bbox": coco_mask.toBbox(rle).tolist(),
                    "area": int(coco_mask.area(rle)),
                    "iscrowd": int(illegible == "ignore" and text == ILLEGIBLE),
                }
            )
    return {
        "info": {"description": "CTW1500", "exif": "ignore"},
        "images": records,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "text"}],
    }


def _pairs(images: Path, labels: Path) -> list[tuple[Path, Path]]:
    """Each image and its label file."""
    if not labels.is_dir():
        raise FileNotFoundError(f"no such folder of labels: {labels}")
    left = {path.stem: path for path in sorted(labels.glob("*")) if path.suffix.lower() in (".xml", ".txt")}
    pairs, missing = [], []
    for path in list_images(images):
        key = path.stem if path.stem in left else f"000{path.stem}"
        if key in left:
            pairs.append((path, left.pop(key)))
        else:
            missing.append(path.name)
    if missing:
        raise FileNotFoundError(
            f"{labels}: {len(missing)} of {len(missing) + len(pairs)} images have no label file (looked for "
            f"NAME.xml, NAME.txt, 000NAME.txt): {listed(missing)}"
        )
    if left:
        names = listed(path.name for path in left.values())
        raise ValueError(f"{labels}: {len(left)} label files have no image in {images}: {names}")
    return pairs


def _read(path: Path) -> list[tuple[list[int], str | None]]:
    """Polygon and text of each object; None where the form has no text."""
    if path.suffix.lower() == ".xml":
        return _read_xml(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from None
    return [_read_line(line, f"{path}, line {k}") for k, line in enumerate(lines, start=1) if line.strip()]


def _read_xml(path: Path) -> list[tuple[list[int], str | None]]:
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{path}: not XML ({error})") from None
    if root.tag != "Annotations" or root.find("image") is None:
        raise ValueError(f"{path}: expected <Annotations> with <image>, got <{root.tag}>")
    objects: list[tuple[list[int], str | None]] = []
    for k, box in enumerate(root.iterfind("image/box"), start=1):
        numbers = _integers((box.findtext("segs") or "").split(","), f"{path}, box {k}, segs")
        if len(numbers) != _POINTS:
            raise ValueError(f"{path}, box {k}, segs: expected {_POINTS} integers, got {len(numbers)}")
        objects.append((numbers, (box.findtext("label") or "").strip()))
    return objects


def _read_line(line: str, where: str) -> tuple[list[int], str | None]:
    numbers, mark, text = line.partition(",####")
    polygon = _integers(numbers.split(","), where)
    if mark and len(polygon) == _POINTS:
        return polygon, text.strip()
    if not mark and len(polygon) == _POINTS + 4:
        left, top = polygon[:2]
        return [value + (top if k % 2 else left) for k, value in enumerate(polygon[4:])], None
    raise ValueError(
        f"{where}: {len(polygon)} integers {'and a text' if mark else 'without #### and a text'}: expected "
        f"{_POINTS} and a text, or {_POINTS + 4} alone"
    )


def _integers(fields: list[str], where: str) -> list[int]:
    try:
        return [int(field) for field in fields if field.strip()]
    except ValueError:
        raise ValueError(f"{where}: expected integers, got {','.join(fields)[:60]!r}") from None
