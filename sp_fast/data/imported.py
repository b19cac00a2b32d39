"""Masks and boxes of other methods as COCO-format pseudo masks."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from sp_fast.data.coco import read_json
from sp_fast.data.faults import short
from sp_fast.data.folders import place_in_folders
from sp_fast.data.images import EXIF, image_size
from sp_fast.data.prepared import listed
from sp_fast.data.rle import box_masks, to_rle
from sp_fast.data.structure import is_number, structural_faults

_KEYS = ("id", "file_name", "height", "width")


@dataclass(frozen=True)
class Imported:
    """Masks of another method.

    Attributes:
        coco: COCO-format dict of one class, `object`.
        root: folder that the file names are relative to; None if no folder was given.
        notes: what was changed or left out, one sentence each.
    """

    coco: dict[str, Any]
    root: Path | None
    notes: tuple[str, ...]


def import_masks(
    path: str | os.PathLike[str],
    *,
    images: Sequence[str | os.PathLike[str]] = (),
    of: str | os.PathLike[str] | None = None,
    min_score: float | None = None,
    top: int | None = None,
    boxes: bool = False,
    leave_out_missing: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Imported:
    """Read the masks or boxes of another method for `source="import"`.

    The file is in COCO format, as FreeSOLO and CutLER write their pseudo masks, or a list in COCO's results
    format, as detectron2 and FreeSOLO write predictions. Masks are polygons or run lengths. Only masks,
    scores and crowds are taken over: boxes and areas are computed from the masks (FreeSOLO's boxes are not
    xywh), annotation ids count from 1 (FreeSOLO's repeat), and there is one class. Where an image's height
    and width are those of its run lengths exchanged, as MaskCut writes them, the run lengths' are taken.

    Args:
        path: JSON file.
        images: folders of the images, to check their sizes, with the EXIF orientation applied or ignored.
            With several folders, file names become relative to the folder that holds all of them.
        of: for a list of results: JSON file with their `images`, by id or file name. Without it,
            `file_name` or `image_id` must be a file name.
        min_score: smallest score.
        top: largest number of masks per image: those with the best scores, or the first if without scores.
        boxes: make masks of boxes: the masks' tight boxes, or `bbox` (xywh, pixels) where there is no mask.
        leave_out_missing: leave out images that are in none of the folders, and their masks.
        progress: called with (images checked, all images), if `images` is given.

    Raises:
        FileNotFoundError: no such file, or images that are in none of the folders.
        ValueError: not such a file, a damaged mask, an image of another size, scores that are needed but
            missing, or no mask left; the message names the entry and the field.
    """
    path = Path(path)
    if top is not None and top < 1:
        raise ValueError(f"top: expected at least 1, got {top}")
    content = read_json(path, _without_embedding)
    info: Any = None
    if isinstance(content, list):
        entries = content
        records = _images_of(path, entries, None if of is None else Path(of))
    else:
        if of is not None:
            raise ValueError(f"of: expected a list of results with it, but {path} lists its own images")
        entries, records, info = _parts(path, content)
    annotations = [_annotation(path, k, one, boxes) for k, one in enumerate(entries)]
    notes = _leave_out_missing(records, annotations, images) if leave_out_missing else []
    notes += _set_sizes(records, annotations, images)
    _check(path, records, annotations, with_scores=min_score is not None)
    root, exif = _find(records, images, progress)
    found, left_out = _masks(records, annotations, boxes, min_score, top)
    notes += left_out
    if not found:
        raise ValueError(
            f"{path}: expected at least one mask, got none of {len(entries)} entries ({'; '.join(notes)})"
            + ("" if boxes else "; for boxes, pass boxes=True (--boxes)")
        )
    about = {"description": f"{'boxes' if boxes else 'masks'} imported from {path.name}"}
    exif = exif or (info.get("exif") if isinstance(info, dict) else None)
    coco = {
        "info": about | ({"exif": exif} if exif in EXIF else {}),
        "images": [{key: record[key] for key in _KEYS} for record in records],
        "annotations": found,
        "categories": [{"id": 1, "name": "object"}],
    }
    return Imported(coco, root, tuple(notes))


def _without_embedding(value: dict) -> dict:
    # FreeSOLO stores 128 numbers with each mask, most of the file and of the memory that it takes.
    value.pop("emb", None)
    return value


def _parts(path: Path, content: Any) -> tuple[list, list[dict], Any]:
    """Entries, images and info of a COCO-format value."""
    for key in ("images", "annotations"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise ValueError(
                f"{path}: expected a list of results, or a COCO-format dict with lists 'images' and "
                f"'annotations', got {short(content)}"
            )
    return content["annotations"], [_record(path, one) for one in content["images"]], content.get("info")


def _record(path: Path, image: Any) -> dict:
    if not isinstance(image, dict) or not isinstance(image.get("id"), (int, str)):
        raise ValueError(f"{path}: expected a dict with an 'id' for each of 'images', got {short(image)}")
    return {key: image[key] for key in _KEYS if key in image}


def _images_of(path: Path, entries: list, of: Path | None) -> list[dict[str, Any]]:
    """The images of a list of results; sets each result's `image_id` to the id of its image."""
    keys = []
    for k, one in enumerate(entries):
        key = one.get("file_name", one.get("image_id")) if isinstance(one, dict) else None
        if not isinstance(key, (int, str)):
            raise ValueError(f"{path}: entry {k}: expected a dict with 'image_id', got {short(one)}")
        keys.append(key)
    if of is None:
        if ids := [key for key in keys if isinstance(key, int)]:
            raise ValueError(
                f"{path}: the results name their images by id, such as {ids[0]}: pass the annotation file "
                "that has these ids as of (--of)"
            )
        records = [{"id": number, "file_name": name} for number, name in enumerate(sorted({*keys}), 1)]
    else:
        content = read_json(of)
        if not isinstance(content, dict) or not isinstance(content.get("images"), list):
            raise ValueError(f"{of}: expected a COCO-format dict with 'images', got {short(content)}")
        records = [_record(of, image) for image in content["images"]]
    known = {one["file_name"]: one["id"] for one in records if isinstance(one.get("file_name"), str)}
    if of is not None:
        known |= {one["id"]: one["id"] for one in records}
    if others := [key for key in keys if key not in known]:
        raise ValueError(
            f"{path}: expected results of the {len(records)} images of {of}, got {len(others)} of "
            f"{len(keys)} results of others, such as {others[0]!r}"
        )
    for one, key in zip(entries, keys, strict=True):
        one["image_id"] = known[key]
    return records


def _annotation(path: Path, position: int, one: Any, boxes: bool) -> dict[str, Any]:
    """The fields of an entry that are used, in the form that `structural_faults` checks."""
    if not isinstance(one, dict) or not isinstance(one.get("image_id"), (int, str)):
        raise ValueError(f"{path}: entry {position}: expected a dict with 'image_id', got {short(one)}")
    entry = {"id": position, "category_id": 1, "segmentation": one.get("segmentation") or []}
    entry |= {key: one[key] for key in ("image_id", "iscrowd", "score") if key in one}
    if not entry["segmentation"] and boxes:
        if "bbox" not in one:
            raise ValueError(f"{path}: entry {position} has neither a mask nor a 'bbox'")
        entry["bbox"] = one["bbox"]
    elif "segmentation" not in one:
        raise ValueError(
            f"{path}: entry {position} has no 'segmentation'; to make masks of boxes, pass boxes=True "
            "(--boxes)"
        )
    return entry


def _leave_out_missing(records: list[dict], annotations: list[dict], folders: Sequence[Any]) -> list[str]:
    """Removes images that are in none of the folders, and their annotations; returns notes."""
    names = {one.get("id"): str(one.get("file_name")) for one in records}
    missing = {
        key for key, name in names.items() if not any((Path(folder) / name).is_file() for folder in folders)
    }
    records[:] = [one for one in records if one.get("id") not in missing]
    annotations[:] = [one for one in annotations if one["image_id"] not in missing]
    return [f"Left out: {len(missing)} images that are in none of the folders"] if missing else []


def _set_sizes(records: list[dict], annotations: list[dict], folders: Sequence[Any]) -> list[str]:
    """Fill in the images' height and width from run lengths or files; returns notes."""
    sizes: dict[Any, Any] = {}
    for one in annotations:
        if isinstance(one["segmentation"], dict):
            sizes.setdefault(one.get("image_id"), one["segmentation"].get("size"))
    exchanged = 0
    for record in records:
        size = sizes.get(record.get("id"))
        claimed = [record.get("height"), record.get("width")]
        if size == claimed[::-1] != claimed:
            exchanged += 1
        if isinstance(size, list) and len(size) == 2 and (claimed == [None, None] or size == claimed[::-1]):
            record["height"], record["width"] = size
        elif claimed == [None, None]:
            files = [Path(folder) / str(record.get("file_name")) for folder in folders]
            if not (file := next((file for file in files if file.is_file()), None)):
                raise FileNotFoundError(
                    f"{record.get('file_name')}: its size is not known, and it is not in "
                    f"{listed(map(str, folders)) or 'any folder: pass images (--images)'}"
                )
            record["height"], record["width"] = image_size(file)
    if not exchanged:
        return []
    return [f"Height and width of {exchanged} images were exchanged; those of their masks are taken"]


def _check(path: Path, records: list[dict], annotations: list[dict], *, with_scores: bool) -> None:
    categories = [{"id": 1, "name": "object"}]
    coco = {"images": records, "annotations": annotations, "categories": categories}
    for fault in structural_faults(coco):
        where = f"entry {fault.position}" if fault.part == "annotations" else fault.where
        raise ValueError(f"{path}: {where}: {fault.field}: expected {fault.expected}, got {fault.got}")
    scored = [one for one in annotations if "score" in one]
    for one in scored:
        if not is_number(one["score"]):
            raise ValueError(
                f"{path}: entry {one['id']}: score: expected a number, got {short(one['score'])}"
            )
    if len(scored) < len(annotations) and (scored or with_scores):
        without = next(one["id"] for one in annotations if "score" not in one)
        raise ValueError(f"{path}: entry {without}: score: expected a number, got no such key")


def _find(
    records: list[dict], folders: Sequence[Any], progress: Callable[[int, int], None] | None
) -> tuple[Path | None, str | None]:
    """The folder of the file names, and the treatment of EXIF orientation that the sizes prove, if any."""
    if not folders:
        return None, None
    root = Path(folders[0])
    if len(folders) > 1:
        root = place_in_folders({"images": records}, folders)
    elif missing := [one["file_name"] for one in records if not (root / one["file_name"]).is_file()]:
        raise FileNotFoundError(
            f"{len(missing)} of {len(records)} images are not in {root}: {listed(missing)}"
        )
    proven, others = set(), []
    for done, record in enumerate(records, start=1):
        size = record["height"], record["width"]
        readings = {way: image_size(root / record["file_name"], exif=way) for way in EXIF}
        fitting = [way for way in EXIF if readings[way] == size]
        if not fitting:
            others.append(f"{record['file_name']} ({readings['apply']}, expected {size})")
        if len(fitting) == 1:
            proven.add(fitting[0])
        if progress is not None:
            progress(done, len(records))
    if others:
        raise ValueError(
            f"{len(others)} of {len(records)} images in {root} have another size (height, width) than their "
            f"masks: {listed(others)}"
        )
    return root, proven.pop() if len(proven) == 1 else None


def _masks(
    records: list[dict],
    annotations: list[dict],
    boxes: bool,
    min_score: float | None,
    top: int | None,
) -> tuple[list[dict[str, Any]], list[str]]:
    """The annotations to write, in the order of the file, and what was left out."""
    sizes = {record["id"]: (record["height"], record["width"]) for record in records}
    good = [one for one in annotations if min_score is None or one["score"] >= min_score]
    drawn = []
    for one in good:
        size = sizes[one["image_id"]]
        rle = to_rle(one["segmentation"], *size) if "bbox" not in one else box_masks(one["bbox"], *size)[0]
        if coco_mask.area(rle):
            drawn.append((one, box_masks(coco_mask.toBbox(rle), *size)[0] if boxes else rle))
    kept = drawn if top is None else _best(drawn, top)
    found = [_entry(number, one, rle) for number, (one, rle) in enumerate(kept, start=1)]
    left_out = {
        f"scored below {min_score}": len(annotations) - len(good),
        "empty": len(good) - len(drawn),
        f"beyond the best {top} of their image": len(drawn) - len(kept),
    }
    return found, [f"Left out: {count} {why}" for why, count in left_out.items() if count]


def _best(drawn: Iterable[tuple[dict, dict]], top: int) -> list[tuple[dict, dict]]:
    counts: dict[Any, int] = {}
    kept = []
    for pair in sorted(drawn, key=lambda pair: -pair[0].get("score", 0)):
        image = pair[0]["image_id"]
        counts[image] = counts.get(image, 0) + 1
        if counts[image] <= top:
            kept.append(pair)
    return sorted(kept, key=lambda pair: pair[0]["id"])


def _entry(number: int, one: dict[str, Any], rle: dict[str, Any]) -> dict[str, Any]:
    counts = rle["counts"]
    return {
        "id": number,
        "image_id": one["image_id"],
        "category_id": 1,
        "segmentation": {
            "size": list(rle["size"]),
            "counts": counts.decode() if isinstance(counts, bytes) else counts,
        },
        "bbox": coco_mask.toBbox(rle).tolist(),
        "area": int(coco_mask.area(rle)),
        "iscrowd": int(one.get("iscrowd", 0)),
    } | ({"score": one["score"]} if "score" in one else {})
