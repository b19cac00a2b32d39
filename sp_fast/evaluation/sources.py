"""What is evaluated: results, masks or the predictions of a model, with the ids of the annotations."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sp_fast.data.coco import load_coco, missing_files, read_json
from sp_fast.data.faults import Fault, counted, short
from sp_fast.data.images import read_labelled
from sp_fast.data.prepared import listed
from sp_fast.data.rle import run_lengths
from sp_fast.data.structure import is_number, structural_faults

ANY_OBJECT = ("object",)  # the one class of proposals and of pre-trained models


@dataclass(frozen=True)
class Detections:
    """Detections with the image and category ids of the annotations.

    Attributes:
        entries: list in COCO's results format, with `segmentation`, `bbox` or both.
        any_object: the detections have no classes; those of the annotations have to be merged.
        notes: what to know about them, a sentence each.
    """

    entries: list[dict[str, Any]]
    any_object: bool = False
    notes: tuple[str, ...] = ()

    @property
    def has_masks(self) -> bool:
        """Whether masks can be evaluated, and not boxes only."""
        return not self.entries or "segmentation" in self.entries[0]


def read_detections(
    path: str | os.PathLike[str], truth: dict[str, Any], *, ignore_classes: bool = False
) -> Detections:
    """Read detections in COCO's results format (a list), or in a COCO-format file with scores.

    In a list, images and categories are those of `truth` by id. A COCO-format file, as `sp-fast propose` and
    `sp-fast predict` write it, is matched by file name and by category name.

    Args:
        path: JSON file.
        truth: annotations from `load_coco`.
        ignore_classes: accept any categories.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, an entry that lacks a key, such as its score, a mask that does not fit its
            image, or images or categories that are not those of `truth`.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file of results: {path}")
    content = read_json(path)
    if isinstance(content, list):
        if problem := _problem(content, truth, ignore_classes):
            raise ValueError(f"{path}: {problem}")
        return Detections(content)
    return _from_coco(path, truth, ignore_classes)


def predict_detections(
    model: Any,
    truth: dict[str, Any],
    images: str | os.PathLike[str],
    *,
    ignore_classes: bool = False,
    top_k: int = 100,
    progress: Callable[[int, int], None] | None = None,
) -> Detections:
    """Predict all annotated images with a model.

    Args:
        model: model from `sp_fast.load`; its classes are matched by name.
        truth: annotations from `load_coco`.
        images: folder of the images.
        ignore_classes: accept any classes.
        top_k: largest number of instances per image.
        progress: called with (images done, all images), at the start and after each batch.

    Raises:
        ValueError: the model has other classes, or an image has another size than its annotations.
        OSError: an image that cannot be read.
    """
    ids = _match(model.classes, truth, "the model", ignore_classes)
    entries: list[dict[str, Any]] = []
    infos, size = truth["images"], max(model.batch_size, 1)
    for start in range(0, len(infos), size):
        if progress is not None:
            progress(start, len(infos))
        batch = infos[start : start + size]
        pixels = [annotated_image(info, Path(images)) for info in batch]
        for info, found in zip(batch, model.predict(pixels, threshold=0.0, top_k=top_k), strict=True):
            entries += _entries(info["id"], found, ids, truth)
    if progress is not None:
        progress(len(infos), len(infos))
    return Detections(entries, ids is None, _merged_note("the model", ids, ignore_classes))


def check_images(names: Sequence[str], folder: Path, whose: str) -> None:
    """Raise FileNotFoundError unless all images, such as those `whose` = "of masks.json", are in `folder`."""
    missing = missing_files(names, folder)
    if not missing:
        return
    if len(missing) < len(names):
        raise FileNotFoundError(
            f"--images: {folder} lacks {len(missing)} of the {len(names)} images {whose}, such as "
            f"{missing[0]}"
        )
    none = f"none of the {len(names)} images {whose} is" if len(names) > 1 else f"the image {whose} is not"
    raise FileNotFoundError(f"--images: {none} in {folder}: expected files such as {missing[0]}")


def annotated_image(info: dict[str, Any], folder: Path, exif: str = "auto") -> np.ndarray:
    """Reads an image as it was annotated: its EXIF orientation is ignored if only then its size is right.

    Args:
        info: entry of the image in a COCO-format file.
        folder: folder of the images.
        exif: see `read_labelled`.

    Raises:
        ValueError: the image has another size than its annotations.
        OSError: it cannot be read.
    """
    size = info["height"], info["width"]
    pixels, _ = read_labelled(folder / info["file_name"], size, exif)
    if pixels.shape[:2] != size:
        raise ValueError(
            f"{info['file_name']}: expected {size[0]} x {size[1]} pixels (height, width) as annotated, got "
            f"an image of {pixels.shape[0]} x {pixels.shape[1]}"
        )
    return pixels


def _entries(image_id: Any, found: Any, ids: dict[str, Any] | None, truth: dict[str, Any]) -> Iterator[dict]:
    sides = np.concatenate([found.boxes[:, :2], found.boxes[:, 2:] - found.boxes[:, :2]], axis=1)
    for name, score, rle, box in zip(
        found.names, found.scores.tolist(), run_lengths(found.masks), sides.tolist(), strict=True
    ):
        category = truth["categories"][0]["id"] if ids is None else ids.get(name)
        if category is not None:  # else a class without annotations
            yield {
                "image_id": image_id,
                "category_id": category,
                "score": score,
                "segmentation": rle,
                "bbox": box,
            }


def _match(
    names: Sequence[str], truth: dict[str, Any], source: str, ignore_classes: bool
) -> dict[str, Any] | None:
    """Ids of the annotations' categories by name; None if classes are to be merged."""
    with_objects = {one["category_id"] for one in truth["annotations"]}
    wanted = [one["name"] for one in truth["categories"] if one["id"] in with_objects]
    if ignore_classes:
        return None
    if set(wanted) <= set(names):
        return {one["name"]: one["id"] for one in truth["categories"] if one["name"] in names}
    if tuple(names) == ANY_OBJECT:
        return None
    raise ValueError(
        f"expected {source} to have the classes of the annotations ({listed(wanted, 8)}), got "
        f"{listed(names, 8)}; --class-agnostic merged compares without classes"
    )


def _merged_note(source: str, ids: dict[str, Any] | None, ignore_classes: bool) -> tuple[str, ...]:
    if ids is not None or ignore_classes:
        return ()
    return (f"{source} has one class for all objects, so the annotations' classes are merged.",)


def _from_coco(path: Path, truth: dict[str, Any], ignore_classes: bool) -> Detections:
    coco = load_coco(path)
    ids = _match([one["name"] for one in coco["categories"]], truth, str(path), ignore_classes)
    names = {one["id"]: one["name"] for one in coco["categories"]}
    known = {info["file_name"]: info for info in truth["images"]}
    images = {info["id"]: known.get(info["file_name"]) for info in coco["images"]}
    shared = {info["id"] for info in images.values() if info is not None}
    if not shared:
        raise ValueError(
            f"{path}: expected the annotated images (such as {next(iter(known), 'none')}), got other images "
            f"(such as {coco['images'][0]['file_name'] if coco['images'] else 'none'}); file names must match"
        )
    for info in coco["images"]:
        own = images[info["id"]]
        if own is not None and (info["height"], info["width"]) != (own["height"], own["width"]):
            raise ValueError(
                f"{path}: {info['file_name']} has {info['height']} x {info['width']} pixels (height, width), "
                f"but its annotations {own['height']} x {own['width']}"
            )
    entries = []
    for one in coco["annotations"]:
        if not is_number(one.get("score")):
            raise ValueError(
                f"{path}: annotation {one['id']} has the score {one.get('score')!r}: expected a number in "
                "'score'; annotations without scores cannot be ranked"
            )
        image = images[one["image_id"]]
        category = truth["categories"][0]["id"] if ids is None else ids.get(names[one["category_id"]])
        if image is not None and category is not None:
            kept = {key: one[key] for key in ("score", "segmentation", "bbox")}
            entries.append({"image_id": image["id"], "category_id": category, **kept})
    return Detections(entries, ids is None, (*_coverage(path, images, shared, truth, ids, ignore_classes),))


def _coverage(
    path: Path,
    images: dict[Any, Any],
    shared: set[Any],
    truth: dict[str, Any],
    ids: dict[str, Any] | None,
    ignore_classes: bool,
) -> Iterator[str]:
    yield from _merged_note(str(path), ids, ignore_classes)
    missing, others = len(truth["images"]) - len(shared), len(images) - len(shared)
    if missing:
        yield f"{missing} of {len(truth['images'])} annotated images are not in {path} and count as empty."
    if others:
        yield f"Left out: {counted(others, 'image')} of {path} without annotations."


def _problem(results: list[Any], truth: dict[str, Any], ignore_classes: bool) -> str | None:
    """What is wrong with a list in COCO's results format, if anything."""
    shape = (
        "segmentation" if any("segmentation" in one for one in results if isinstance(one, dict)) else "bbox"
    )
    for k, one in enumerate(results):
        if not isinstance(one, dict):
            return f"result {k} must be a dict, got a {type(one).__name__}"
        for key in ("image_id", "category_id", "score", shape):
            if key not in one:
                return f"result {k} lacks the key '{key}'" + (" or 'segmentation'" if key == "bbox" else "")
        if not is_number(one["score"]):
            return f"result {k} has the score {short(one['score'])}: expected a number"
    faults = _faults(results, truth, ignore_classes)
    unknown = [fault for fault in faults if fault.kind == "reference"]
    if others := [fault for fault in unknown if fault.field == "image_id"]:
        return (
            f"expected results for the {len(truth['images'])} annotated images, got {len(others)} of "
            f"{len(results)} results for other images, such as image_id {others[0].got}"
        )
    if unknown:
        categories = [str(one["id"]) for one in truth["categories"]]
        return (
            f"expected categories of the annotations ({listed(categories, 8)}), got {len(unknown)} results "
            f"of others, such as category_id {unknown[0].got}; --class-agnostic merged compares without "
            "classes"
        )
    for fault in faults:
        return f"result {fault.position} has a bad {fault.field}: expected {fault.expected}, got {fault.got}"
    for k, one in enumerate(results):
        if min(one.get("bbox", (0, 0, 0, 0))[2:]) < 0:
            return f"result {k} has a bad bbox: expected [x, y, width, height] in pixels, got {one['bbox']}"
    return None


def _faults(results: list[dict], truth: dict[str, Any], ignore_classes: bool) -> list[Fault]:
    """The faults of the results as if they were annotations."""
    keys = ("image_id", "category_id", "segmentation", "bbox")
    entries = [
        {"id": k, "segmentation": []} | {key: one[key] for key in keys if key in one}
        for k, one in enumerate(results)
    ]
    categories = truth["categories"]
    if ignore_classes:
        ids = {one["category_id"] for one in results if isinstance(one["category_id"], (int, str))}
        categories = [{"id": one, "name": str(one)} for one in ids] or categories
    coco = {"images": truth["images"], "annotations": entries, "categories": categories}
    return [fault for fault in structural_faults(coco) if fault.part == "annotations"]
