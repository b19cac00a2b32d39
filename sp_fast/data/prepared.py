"""Writing the annotation file of a data set: checked before it is in place, and counted."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from sp_fast.data.counts import LARGE, SMALL
from sp_fast.files import replacing


def check_outputs(paths: Iterable[str | os.PathLike[str]], *, overwrite: bool) -> None:
    """Raise an error if two of the files to write are one, or if one exists and `overwrite` is not set."""
    seen = set()
    for path in map(Path, paths):
        if os.path.abspath(path) in seen:
            raise ValueError(f"out: expected a separate file for each output, got {path} twice")
        seen.add(os.path.abspath(path))
        if path.is_dir():
            raise IsADirectoryError(f"out: expected a file to write, got the folder {path}")
        if path.exists() and not overwrite:
            raise FileExistsError(f"out: {path} already exists; choose another file, or pass --overwrite")


def write_checked(coco: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a COCO-format dict of plain values (atomic write), after reading it with pycocotools.

    Raises:
        ValueError: pycocotools finds other entries in it, or a segmentation that is no mask of its image.
    """
    with replacing(Path(path)) as file:
        file.write(json.dumps(coco, separators=(",", ":")).encode())
        file.flush()
        with contextlib.redirect_stdout(io.StringIO()):
            read = COCO(file.name)
        found = {"images": read.imgs, "annotations": read.anns, "categories": read.cats}
        for part, entries in found.items():
            if len(entries) != len(coco[part]):
                raise ValueError(
                    f"{path}: pycocotools finds {len(entries)} {part}, expected {len(coco[part])}; nothing "
                    "is written"
                )
        for annotation in read.anns.values():
            image = read.imgs[annotation["image_id"]]
            size = read.annToRLE(annotation)["size"]
            if list(size) != [image["height"], image["width"]]:
                raise ValueError(
                    f"{path}: pycocotools reads annotation {annotation['id']} as a mask of {size}, expected "
                    f"{[image['height'], image['width']]} (height, width); nothing is written"
                )


def summary(coco: dict[str, Any]) -> str:
    """Table of the objects per class and COCO size, crowds apart, with the number of images above it."""
    columns = ("objects", "small", "medium", "large", "crowds", "images")
    rows = {category["id"]: Counter[str]() for category in coco["categories"]}
    images: dict[Any, set] = {category: set() for category in rows}
    for one in coco["annotations"]:
        row = rows[one["category_id"]]
        images[one["category_id"]].add(one["image_id"])
        if one["iscrowd"]:
            row["crowds"] += 1
            continue
        row["objects"] += 1
        row["small" if one["area"] < SMALL else "medium" if one["area"] < LARGE else "large"] += 1
    for category, row in rows.items():
        row["images"] = len(images[category])
    total = sum(rows.values(), Counter[str]())
    total["images"] = len(set().union(*images.values()))
    names = [category["name"] for category in coco["categories"]]
    width = max(map(len, [*names, "class", "all"]))
    lines = [f"{'class':{width}}" + "".join(f"{column:>9}" for column in columns)]
    for name, row in zip([*names, "all"], [*rows.values(), total], strict=True):
        lines.append(f"{name:{width}}" + "".join(f"{row[column]:9}" for column in columns))
    count = len(coco["images"])
    return f"{count} images, {count - total['images']} of them without objects\n" + "\n".join(lines)


def listed(names: Iterable[str], shown: int = 5) -> str:
    """The first few names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return f"{', '.join(names[:shown])}{more}"
