"""Parts of a COCO-format file: drawn at random, or given by the lists that others publish."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sp_fast.data.prepared import listed
from sp_fast.files import sha256, write_text

RECIPES = ("hash", "mmdet", "detreg")
POSITIONS = ("file", "detectron2")


def draw(images: Sequence[dict[str, Any]], share: float, seed: int, recipe: str = "hash") -> set[Any]:
    """The ids of a random part of the images; the same on every machine.

    Args:
        images: the entries of a COCO-format file, in its order.
        share: percentage, above 0 and up to 100.
        seed: random seed, or the fold of "mmdet".
        recipe: "hash" takes the ids with the smallest SHA-256 of "seed:id", so that the order of the file
            does not matter and that 5 % are a part of 10 %. "mmdet" is `tools/misc/split_coco.py` of mmdet,
            and STAC's: it draws with replacement and so gives fewer images than asked for. "detreg" is
            DETReg's, whose seed is 42.

    Raises:
        ValueError: another recipe, a share outside (0, 100], or a part without images.
    """
    if not 0 < share <= 100:
        raise ValueError(f"share: expected a percentage above 0 and up to 100, got {share:g}")
    ids = [image["id"] for image in images]
    if recipe == "hash":
        keys = {one: hashlib.sha256(f"{seed}:{one}".encode()).digest() for one in ids}
        chosen = sorted(ids, key=keys.__getitem__)[: round(len(ids) * share / 100)]
    elif recipe == "mmdet":
        drawn = np.random.RandomState(seed).choice(len(ids), size=int(share / 100 * len(ids)))
        chosen = [ids[position] for position in drawn.tolist()]
    elif recipe == "detreg":
        places = np.random.default_rng(seed).choice(len(ids), round(len(ids) * (share / 100)), replace=False)
        ids = in_order(ids)
        chosen = [ids[position] for position in places.tolist()]
    else:
        raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}, got {recipe!r}")
    if not chosen:
        raise ValueError(f"share: {share:g} % of {len(ids)} images is none")
    return set(chosen)


def read_list(
    path: str | os.PathLike[str],
    coco: dict[str, Any],
    *,
    share: float | None = None,
    seed: int = 1,
    positions: str = "file",
) -> set[Any]:
    """The ids of the images that a published list names.

    The list may be JSON or text:

    - Unbiased Teacher's `COCO_supervision.txt`: {percentage: {seed: [positions]}};
    - a COCO-format file, such as `instances_train2017.1@10.json`, of which the images count;
    - a JSON list, or a text file with one entry a line, of image ids or file names.

    Args:
        path: the list.
        coco: the COCO-format dict that it is a part of.
        share: the percentage in a `COCO_supervision.txt`.
        seed: the seed in it.
        positions: what its positions count. "file": the images in the file's order, as FreeSOLO reads it;
            "detectron2": the images with an object that is not a crowd, by id, as Unbiased Teacher itself
            does.

    Raises:
        FileNotFoundError: no such list.
        ValueError: another form, no such entry, or images that are not in `coco`.
    """
    path = Path(path)
    if positions not in POSITIONS:
        raise ValueError(f"positions: expected one of {', '.join(POSITIONS)}, got {positions!r}")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(f"no such list of images: {path}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path}: expected a list in JSON or text, got other data") from None
    try:
        entries = json.loads(text)
    except ValueError:
        entries = text.split("\n")
    if isinstance(entries, (int, str)):  # a text file of one line can be JSON too
        entries = [str(entries)]
    if isinstance(entries, dict) and "images" in entries:
        entries = _ids_of(path, entries["images"])
    elif isinstance(entries, dict):
        return _at_positions(path, coco, _entry(path, entries, share, seed), positions)
    if not isinstance(entries, list):
        raise ValueError(f"{path}: expected ids, file names, positions or a COCO-format file")
    return _named(path, coco, entries)


def in_order(ids: Collection[Any]) -> list[Any]:
    """Ids in ascending order, numbers before texts."""
    return sorted(ids, key=lambda one: (isinstance(one, str), one))


def part(coco: dict[str, Any], chosen: Collection[Any], about: dict[str, Any]) -> dict[str, Any]:
    """The COCO-format dict of the chosen images, in the file's order; `about` becomes `info.split`."""
    info = coco.get("info")
    return {
        **coco,
        "info": {**(info if isinstance(info, dict) else {}), "split": about},
        "images": [image for image in coco["images"] if image["id"] in chosen],
        "annotations": [one for one in coco["annotations"] if one["image_id"] in chosen],
    }


def ids_text(ids: Collection[Any]) -> str:
    """Ids in ascending order, one a line: what the hash of a list is taken of."""
    return "".join(f"{one}\n" for one in in_order(ids))


def write_ids(ids: Collection[Any], path: Path) -> str:
    """Write the ids (atomic write) and return the file's SHA-256."""
    write_text(ids_text(ids), path)
    return sha256(path)


def _ids_of(path: Path, images: Any) -> list[Any]:
    try:
        return [image["id"] for image in images]
    except (TypeError, KeyError):
        raise ValueError(f"{path}: expected a COCO-format file, but its 'images' lack ids") from None


def _entry(path: Path, lists: dict[str, Any], share: float | None, seed: int) -> Any:
    if share is None:
        raise ValueError(f"share: expected one of the percentages of {path}: {listed(lists)}")
    for percentage, of_seed in lists.items():
        try:
            found = float(percentage) == share
        except ValueError:
            break
        if found and isinstance(of_seed, dict):
            if str(seed) not in of_seed:
                raise ValueError(f"seed: {path} has {listed(of_seed)} for {percentage} %, got {seed}")
            return of_seed[str(seed)]
        if found:
            break
    else:
        raise ValueError(f"share: {path} has {listed(lists)}, got {share:g}")
    raise ValueError(f"{path}: expected {{percentage: {{seed: [positions]}}}} or a COCO-format file")


def _at_positions(path: Path, coco: dict[str, Any], places: Any, positions: str) -> set[Any]:
    ids = [image["id"] for image in coco["images"]]
    if positions == "detectron2":
        with_objects = {one["image_id"] for one in coco["annotations"] if not one["iscrowd"]}
        ids = in_order(with_objects)
    if not isinstance(places, list) or not places or not all(isinstance(place, int) for place in places):
        raise ValueError(f"{path}: expected a list of positions, got {str(places)[:40]}")
    if min(places) < 0 or max(places) >= len(ids):
        raise ValueError(
            f"{path}: positions {min(places)} to {max(places)}, but there are {len(ids)} images: the list "
            "belongs to another annotation file"
        )
    return {ids[place] for place in places}


def _named(path: Path, coco: dict[str, Any], entries: list[Any]) -> set[Any]:
    known = {}
    for image in coco["images"]:
        known[str(image["id"])] = known[image["file_name"]] = image["id"]
    wanted = [str(entry).strip() for entry in entries]
    wanted = [entry for entry in wanted if entry]
    unknown = [entry for entry in wanted if entry not in known]
    if unknown:
        raise ValueError(
            f"{path}: {len(unknown)} of {len(wanted)} entries are no image of the annotation file: "
            f"{listed(unknown)}"
        )
    if not wanted:
        raise ValueError(f"{path}: the list is empty")
    return {known[entry] for entry in wanted}
