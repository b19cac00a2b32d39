"""Finding and reading images, and keeping track of unreadable ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")

BROKEN_LIMIT = 0.05  # largest tolerated share of broken images
_ORIENTATION = 0x0112  # EXIF tag
Result = TypeVar("Result")


class BrokenImageError(ValueError):
    """An image file that cannot be decoded.

    Attributes:
        path: the file.
        reason: short explanation.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str) -> None:
        # Both are passed on as args, so that the exception can be pickled by a loader's process.
        super().__init__(path, reason)
        self.path = Path(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class TooManyBrokenError(ValueError):
    """Too many images of a folder cannot be read."""


class BrokenImages:
    """The unreadable images of one run, each counted once; too many of them are an error.

    Args:
        limit: largest tolerated share of broken images.
    """

    def __init__(self, limit: float = BROKEN_LIMIT) -> None:
        self.limit = limit
        self.reasons: dict[Path, str] = {}

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, path: str | os.PathLike[str], reason: str) -> bool:
        """Record a broken image; return True if it is new."""
        path = Path(path)
        new = path not in self.reasons
        self.reasons.setdefault(path, reason)
        return new

    def check(self, total: int) -> None:
        """Raise TooManyBrokenError if more than `limit` of `total` images are broken."""
        if len(self) > self.limit * total:
            raise TooManyBrokenError(
                f"{self.report(total)}. More than {self.limit:.0%} of the images are broken, so something is "
                "wrong with the folder: remove or replace these files and run again"
            )

    def report(self, total: int | None = None, shown: int = 5) -> str:
        """One line: the number of unreadable images, and the first few with their reasons."""
        of = "" if total is None else f" of {total}"
        head = f"{len(self)}{of} image{'' if (total or len(self)) == 1 else 's'} could not be read"
        if not self.reasons:
            return head
        names = [f"{path} ({reason})" for path, reason in list(self.reasons.items())[:shown]]
        more = len(self) - len(names)
        return f"{head}: {', '.join(names)}{f' and {more} more' if more else ''}"


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """List the images in `folder` and its sub-folders, sorted by path, without hidden files and folders.

    Symbolic links to folders inside `folder` are not followed.

    Raises:
        FileNotFoundError: `folder` does not exist.
        NotADirectoryError: `folder` is a file.
        ValueError: no file in it has one of IMAGE_SUFFIXES.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"no such folder of images: {folder}")
    if not folder.is_dir():
        raise NotADirectoryError(f"expected a folder of images, got a file: {folder}")
    found = []
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        # This also skips "._name.jpg", which macOS puts beside a file and which is not an image.
        found += [
            Path(parent, name)
            for name in files
            if not name.startswith(".") and name.lower().endswith(IMAGE_SUFFIXES)
        ]
    if not found:
        raise ValueError(f"no images in {folder} (looked for {', '.join(IMAGE_SUFFIXES)})")
    return sorted(found, key=lambda path: path.as_posix())


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an image file as uint8 [H, W, 3], RGB.

    The EXIF orientation is applied. Grayscale is repeated over the channels, CMYK and palettes are converted,
    16-bit gray is scaled by 255 / 65535, an alpha channel is dropped, and only the first of several frames is
    read.

    Raises:
        FileNotFoundError: no such file.
        BrokenImageError: empty, truncated, not an image, or with floating-point pixels (of undefined range).
    """
    return _decode(path, lambda image: _to_rgb(ImageOps.exif_transpose(image)))


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Height and width of `read_image(path)`, from the file's header only; raises the same errors."""

    def size(image: Image.Image) -> tuple[int, int]:
        return (image.width, image.height) if _turns(image) else (image.height, image.width)

    return _decode(path, size)


def is_turned(path: str | os.PathLike[str]) -> bool:
    """Whether the EXIF orientation of an image file swaps height and width."""
    return _decode(path, _turns)


def _turns(image: Image.Image) -> bool:
    return image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8)


def _decode(path: str | os.PathLike[str], use: Callable[[Image.Image], Result]) -> Result:
    """Call `use` with the opened image; any decoder failure becomes a BrokenImageError."""
    with open(path, "rb") as file:
        if not file.read(1):
            raise BrokenImageError(path, "the file is empty")
        file.seek(0)
        try:
            with Image.open(file) as image:
                return use(image)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise almost any type on damaged data
            unknown = isinstance(error, Image.UnidentifiedImageError)
            reason = "not an image in a known format" if unknown else str(error) or type(error).__name__
            raise BrokenImageError(path, reason) from error


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not defined")
    if image.mode.startswith("I"):
        gray = np.asarray(image).astype(np.float64)
        if gray.min() < 0 or gray.max() > 65535:
            raise ValueError("32-bit pixels outside 0..65535, whose range is not defined")
        gray = np.rint(gray * (255 / 65535)).astype(np.uint8)
        return np.repeat(gray[..., None], 3, axis=2)
    return np.array(image.convert("RGB"))
