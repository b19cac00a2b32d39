"""Builds a COCO-format dict, and reads label images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sp_fast.data.faults import short
from sp_fast.data.images import BoundedFile, list_images, max_megapixels
from sp_fast.data.rle import run_lengths


class Builder:
    """A COCO-format dict in the making; classes get their ids in the order of `names`, others after them."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._categories = {name: number for number, name in enumerate(names, start=1)}
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def image(self, name: str, height: Any, width: Any) -> None:
        """Adds an image; the objects that follow are its."""
        number = len(self._images) + 1
        self._images.append({"id": number, "file_name": name, "height": height, "width": width})

    def object(self, name: str, segmentation: Any, crowd: bool = False) -> None:
        """Adds an object of the image added last."""
        category = self._categories.setdefault(name, len(self._categories) + 1)
        annotation = {"id": len(self._annotations) + 1, "image_id": len(self._images)}
        shape = {"category_id": category, "segmentation": segmentation, "iscrowd": int(crowd)}
        self._annotations.append({**annotation, **shape})

    def coco(self) -> dict[str, Any]:
        """The dict."""
        categories = [{"id": number, "name": name} for name, number in self._categories.items()]
        return {"images": self._images, "annotations": self._annotations, "categories": categories}


def check_size(path: Path, height: Any, width: Any) -> None:
    """Raise ValueError unless a label file's size is that of an image that can be read."""
    whole = type(height) is int and type(width) is int and min(height, width) > 0
    if not whole or height * width > max_megapixels() * 1e6:
        raise ValueError(
            f"{path}: expected the image's height and width in pixels, at most {max_megapixels():.0f} "
            f"megapixels, got {short(height)} and {short(width)}"
        )


def lines_of(path: Path) -> list[str]:
    """The lines of a text file; ValueError if it is not in UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8, got another file ({error})") from None


def read_map(path: Path, *, coloured: bool = False) -> np.ndarray:
    """A label image as integers [H, W]: palette indices or grey values; of colours, 65536 R + 256 G + B.

    With `coloured`, palette indices and grey values are taken as the colours that they stand for.
    """
    try:
        with BoundedFile(path) as file, Image.open(file) as image:
            if image.mode in ("P", "L", "I", "I;16") and not coloured:
                return np.asarray(image).astype(np.int64)
            pixels: np.ndarray = np.asarray(image.convert("RGB")).astype(np.int64)
    except MemoryError:
        raise
    except Exception as error:  # as in `read_image`: Pillow's decoders raise almost any type
        raise ValueError(
            f"{path}: expected a label image, got a file that cannot be read ({error})"
        ) from None
    return pixels @ np.array([65536, 256, 1])


def masks_of(labels: np.ndarray) -> Iterator[tuple[int, np.ndarray, dict[str, Any]]]:
    """Each value above 0 of a label image, with its mask as bool [H, W] and as run lengths."""
    for value in np.unique(labels[labels > 0]).tolist():
        mask = labels == value
        yield value, mask, run_lengths(mask[None])[0]


def images_by_stem(folder: Path) -> dict[str, str]:
    """Path of each image relative to `folder`, by its path without suffix."""
    names = [path.relative_to(folder) for path in list_images(folder)]
    return {name.with_suffix("").as_posix(): name.as_posix() for name in names}
