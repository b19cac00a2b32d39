"""Reading, checking and writing COCO-format annotation files."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pycocotools import mask as coco_mask

from sp_fast.data.images import is_inside
from sp_fast.data.rle import may_be_empty, rle_areas, to_rle
from sp_fast.data.structure import structural_faults
from sp_fast.files import replacing

CONVERT = "`sp-fast check FOLDER --images IMAGES --convert FILE` turns labels of YOLO or LabelMe into COCO's"


def load_coco(
    path: str | os.PathLike[str],
    images: str | os.PathLike[str] | None = None,
    *,
    tight_boxes: bool = False,
    class_agnostic: bool = False,
) -> dict[str, Any]:
    """Load and check a COCO-format file of instance masks.

    `segmentation` may be polygons [[x0, y0, x1, y1, ...], ...] or run lengths (compressed or not) of the
    image's size. Missing `bbox` (xywh, pixels), `area` and `iscrowd` are filled in.

    Args:
        path: JSON file.
        images: folder of the images; if given, every `file_name` must exist in it.
        tight_boxes: compute every `bbox` and `area` from the mask, replacing those of the file.
        class_agnostic: accept several categories of the same name.

    Objects with an empty mask are left out, with a warning that names them, as are polygons of fewer than
    three points. A `bbox` or `area` of 0 counts as missing.

    Raises:
        FileNotFoundError: the file does not exist, or images are missing from `images`.
        ValueError: a `file_name` leads out of `images`; or the first of `structural_faults`, such as a
            missing key, a value of a wrong type, an id used twice, or a segmentation that is not a mask of
            its image; or no object has a mask. The message names the file, the entry and the field.
    """
    path = Path(path)
    coco = read_json(path)
    for fault in structural_faults(coco):
        if class_agnostic and fault.kind == "class name":
            continue
        raise ValueError(f"{path}: {fault}; {fault.mend}")
    for annotation in coco["annotations"]:
        _normalise(annotation, tight_boxes)
    empty = _fill_in(coco["annotations"], _sizes(coco))
    if empty:
        _leave_out(coco, empty, path)
    if images is not None:
        check_files(path, [image["file_name"] for image in coco["images"]], Path(images))
    return coco


def read_json(path: Path, object_hook: Any = None) -> Any:
    """The value in a JSON file; `object_hook` replaces each dict as soon as it is read.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: not JSON.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"no such annotation file: {path}") from None
    except IsADirectoryError:
        wanted = "expected a file in COCO's format"
        raise IsADirectoryError(f"{wanted}, got the folder {path}; {CONVERT}") from None
    try:
        return json.loads(text, object_hook=object_hook)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})") from None


def save_coco(coco: dict[str, Any] | list[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """Write a COCO-format dict, or a list of results in COCO's format, as JSON (atomic write)."""
    with replacing(Path(path)) as file:
        file.write(_json(coco))


def write_masks(
    out: BinaryIO,
    info: dict[str, Any],
    images: Iterable[dict[str, Any]],
    masks: Iterable[dict[str, Any]],
    classes: Sequence[str] = ("object",),
) -> int:
    """Write a COCO-format file of masks without holding them all in memory.

    Args:
        out: file to write.
        info: any JSON values.
        images: one dict per image with id, file_name, height and width.
        masks: one dict per mask with image_id, size (height, width), counts, bbox, area and any other keys;
            category_id is 1 unless given.
        classes: names of the categories 1, 2, ...

    Returns:
        The number of masks, which get the ids 1, 2, ...
    """

    def write_all(entries: Iterable[dict[str, Any]]) -> int:
        number = 0
        for number, entry in enumerate(entries, start=1):
            out.write((b",\n" if number > 1 else b"\n") + _json(entry))
        return number

    start = b'{"info":' + _json(info) + b',"categories":' + _json(object_categories(classes))
    out.write(start + b',"images":[')
    write_all(images)
    out.write(b'],"annotations":[')
    count = write_all(numbered(masks))
    out.write(b"]}\n")
    return count


def object_categories(classes: Sequence[str] = ("object",)) -> list[dict[str, Any]]:
    """The categories of `write_masks`."""
    return [{"id": number, "name": name} for number, name in enumerate(classes, start=1)]


def numbered(masks: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The annotations of `write_masks`."""
    return (_annotation(number, **mask) for number, mask in enumerate(masks, start=1))


def _annotation(
    number: int,
    *,
    image_id: int,
    size: list[int],
    counts: str,
    bbox: list[int],
    area: int,
    category_id: int = 1,
    **others: Any,
) -> dict[str, Any]:
    segmentation = {"size": size, "counts": counts}
    known = {"id": number, "image_id": image_id, "category_id": category_id, "segmentation": segmentation}
    return {**known, "bbox": bbox, "area": area, "iscrowd": 0, **others}


def _json(value: Any) -> bytes:
    return json.dumps(value, default=_plain, separators=(",", ":")).encode()


def _plain(value: Any) -> Any:
    """Convert what json cannot write: bytes (pycocotools' run lengths) and numpy values."""
    if isinstance(value, bytes):
        return value.decode("ascii")
    if isinstance(value, (np.generic, np.ndarray)):
        return value.tolist()
    raise TypeError(f"cannot write a {type(value).__name__} to a COCO-format file")


def _sizes(coco: dict[str, Any]) -> dict[Any, tuple[int, int]]:
    return {image["id"]: (image["height"], image["width"]) for image in coco["images"]}


def check_files(path: Path, names: Sequence[str], folder: Path) -> None:
    """Raise FileNotFoundError or ValueError unless the images of annotation file `path` are in `folder`."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no such folder of images: {folder}")
    of_parent = _by_parent(names)
    outside = [those for parent, those in of_parent.items() if not is_inside(parent, folder)]
    if outside:
        raise ValueError(
            f"{path}: {sum(map(len, outside))} of {len(names)} file names lead out of {folder}: "
            f"{', '.join(outside[0][:5])}; give a folder that holds all images"
        )
    missing = missing_files(names, folder)
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise FileNotFoundError(
            f"{path}: {len(missing)} of {len(names)} images are not in {folder}: "
            f"{', '.join(missing[:5])}{more}"
        )


def missing_files(names: Sequence[str], folder: Path) -> list[str]:
    """The names of files that are not in `folder`, by folder."""
    # List each folder once: looking up every file takes long on a network file system.
    parents = _by_parent(names).items()
    return [name for parent, those in parents for name in _missing(those, folder / parent)]


def _by_parent(names: Sequence[str]) -> dict[str, list[str]]:
    of_parent: dict[str, list[str]] = {}
    for name in names:
        of_parent.setdefault(os.path.dirname(name), []).append(name)
    return of_parent


def _missing(names: Iterable[str], parent: Path) -> list[str]:
    """The names whose last part is not a file in the folder `parent`."""
    try:
        with os.scandir(parent) as entries:
            found = {entry.name for entry in entries if entry.is_file()}
    except OSError:
        found = set()
    left = [name for name in names if os.path.basename(name) not in found]
    return [name for name in left if not (parent / os.path.basename(name)).is_file()]


def _normalise(annotation: dict, tight_boxes: bool) -> None:
    annotation["iscrowd"] = int(annotation.get("iscrowd", 0))
    if isinstance(annotation["segmentation"], list):
        annotation["segmentation"] = [one for one in annotation["segmentation"] if len(one) >= 6]
    if tight_boxes or min(annotation.get("bbox", (0, 0, 0, 0))[2:]) <= 0:
        annotation.pop("bbox", None)
    if tight_boxes or annotation.get("area", 0) <= 0:
        annotation.pop("area", None)


def _fill_in(annotations: list[dict], sizes: dict[Any, tuple[int, int]]) -> list[int]:
    """Adds each missing bbox and area; returns the positions of the annotations with an empty mask."""
    # Drawing all polygons of a large file takes minutes, so only those are drawn that may be empty.
    unsure = [
        k
        for k, one in enumerate(annotations)
        if "bbox" not in one or "area" not in one or may_be_empty(one["segmentation"], sizes[one["image_id"]])
    ]
    empty = []
    for start in range(0, len(unsure), 65536):
        part = unsure[start : start + 65536]
        rles = [to_rle(annotations[k]["segmentation"], *sizes[annotations[k]["image_id"]]) for k in part]
        for k, box, area in zip(part, coco_mask.toBbox(rles), rle_areas(rles), strict=True):
            annotations[k].setdefault("bbox", box.tolist())
            annotations[k].setdefault("area", float(area))
            if not area:
                empty.append(k)
    return empty


def _leave_out(coco: dict[str, Any], empty: list[int], path: Path) -> None:
    annotations = coco["annotations"]
    ids = ", ".join(str(annotations[k]["id"]) for k in empty[:10]) + (", ..." if len(empty) > 10 else "")
    left_out = set(empty)
    coco["annotations"] = [one for k, one in enumerate(annotations) if k not in left_out]
    counted = f"{len(empty)} of {len(annotations)} objects have an empty mask: annotations {ids}"
    if not coco["annotations"]:
        raise ValueError(f"{path}: {counted}; expected at least one object with a mask")
    warnings.warn(f"{path}: {counted}. They are left out.", stacklevel=3)
