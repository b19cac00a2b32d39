"""Checks of a data set's image files: present, readable, of the annotated size, no duplicates."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from sp_fast.data.faults import Fault, note, short
from sp_fast.data.images import BrokenImageError, image_size, is_inside, list_images, read_image

Progress = Callable[[int, int], None]


def image_faults(
    images: Sequence[tuple[int, dict]], folder: Path, *, pixels: bool = True, progress: Progress | None = None
) -> tuple[list[Fault], dict[Any, bytes]]:
    """Checks image files in threads.

    Args:
        images: position in the annotation file, and entry, of each image.
        folder: the folder that their file names are relative to.
        pixels: also decode each image, which finds broken and duplicated ones; else only headers are read.
        progress: called with (images done, number of images).

    Returns:
        The faults, and a hash of each image's decoded pixels by image id (empty without `pixels`), so that
        the same picture in another file format without loss has the same hash.
    """
    faults: list[Fault] = []
    contents: dict[Any, bytes] = {}
    names: dict[str, str] = {}
    for position, image in images:
        name = os.path.normpath(image["file_name"])
        here = _where(image)
        if name in names:
            got = f"{short(image['file_name'])}, also of {names[name]}"
            faults.append(_fault("listed twice", position, image, "file_name", "a file of its own", got))
        names.setdefault(name, here)
        if not is_inside(name, folder):
            got = short(image["file_name"])
            faults.append(_fault("outside folder", position, image, "file_name", f"a path in {folder}", got))

    with ThreadPoolExecutor() as pool:
        work = pool.map(lambda entry: _look(entry[0], entry[1], folder, pixels), images)
        try:
            for done, ((_, image), (fault, content)) in enumerate(zip(images, work, strict=True), start=1):
                if fault:
                    faults.append(fault)
                if content:
                    contents[image["id"]] = content
                if progress:
                    progress(done, len(images))
        except BaseException:  # Ctrl-C would wait for all the other images
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return faults + _duplicates(images, contents), contents


def unlisted(images: Sequence[Any], folder: Path) -> Fault | None:
    """The images in the folder that have no entry, as one fault; entries may have faults themselves."""
    names = [image.get("file_name") for image in images if isinstance(image, dict)]
    listed = {os.path.normpath(name) for name in names if isinstance(name, str)}
    try:
        found = [os.path.relpath(path, folder) for path in list_images(folder)]
    except ValueError:  # no images at all: each entry's image is missing, which is said already
        return None
    extra = [name for name in found if os.path.normpath(name) not in listed]
    if not extra:
        return None
    return note("unlisted", f"{len(extra)} of {len(found)}", extra)


def _where(image: dict) -> str:
    return f"image {short(image['id'])} ({image['file_name']})"


def _fault(kind: str, position: int, image: dict, field: str, expected: str, got: str) -> Fault:
    return Fault(kind, _where(image), field, expected, got, "images", position, image["id"])


def _look(position: int, image: dict, folder: Path, pixels: bool) -> tuple[Fault | None, bytes | None]:
    path = folder / image["file_name"]
    try:
        size = image_size(path)
        content = _hash(read_image(path)) if pixels else None
    except BrokenImageError as error:
        return _fault("broken image", position, image, "file_name", "an image", error.reason), None
    except (OSError, ValueError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        return _fault("missing image", position, image, "file_name", f"a file in {folder}", reason), None
    said = image["height"], image["width"]
    if said == size:
        return None, content
    kind = "swapped size" if said == size[::-1] else "image size"
    what = "size of the file"
    if said == image_size(path, exif="ignore"):
        kind, what = "EXIF", "size of the image turned as its EXIF tag says"
    expected = f"{size[0]} x {size[1]}, the {what}"
    return _fault(kind, position, image, "height, width", expected, f"{said[0]} x {said[1]}"), content


def _hash(image: np.ndarray) -> bytes:
    digest = hashlib.blake2b(str(image.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(image))
    return digest.digest()


def _duplicates(images: Sequence[tuple[int, dict]], contents: dict[Any, bytes]) -> list[Fault]:
    first: dict[bytes, dict] = {}
    faults = []
    for position, image in images:
        content = contents.get(image["id"])
        if content is None:
            continue
        same = first.setdefault(content, image)
        if os.path.normpath(same["file_name"]) != os.path.normpath(image["file_name"]):
            got = f"the pixels of {_where(same)}"
            faults.append(_fault("same image", position, image, "", "an image of its own", got))
    return faults
