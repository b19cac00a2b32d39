"""Finding and reading images, and keeping track of unreadable ones."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, features

from sp_fast.data.faults import counted, printable

_JPEG, _TIFF, _NETPBM = (".jpg", ".jpeg", ".jfif"), (".tif", ".tiff"), (".ppm", ".pgm")
IMAGE_SUFFIXES = (*_JPEG, ".png", ".bmp", ".gif", *_TIFF, ".webp", *_NETPBM)
# Read where Pillow has the library, or a plug-in is installed; otherwise left out with a warning.
_FEATURES = {".avif": "avif", ".jp2": "jpg_2000"}
_PLUGINS = {".heic": "pillow_heif", ".heif": "pillow_heif", ".jxl": "pillow_jxl"}
_PACKAGES = {"pillow_heif": "pillow-heif", "pillow_jxl": "pillow-jxl-plugin"}
_OPTIONAL = (*_FEATURES, *_PLUGINS)
_OTHER_SUFFIXES = (*_OPTIONAL, ".dng", ".cr2", ".nef", ".arw")

# Pillow warns from half of `max_megapixels` on.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

EXIF = ("apply", "ignore")
BROKEN_LIMIT = 0.05  # largest tolerated share of broken images

_ORIENTATION = 0x0112  # EXIF tag
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = (5, 6, 7, 8)  # orientations that exchange height and width
_PIXELS_AT_ONCE = 2**22
# Pillow holds 4 bytes per pixel, so threads decode larger images one after the other.
_LARGE = 2**25
_ONE_LARGE = threading.Lock()
Result = TypeVar("Result")
Item = TypeVar("Item")


class BrokenImageError(ValueError):
    """An image file that cannot be decoded.

    Attributes:
        path: the file.
        reason: short explanation; empty where torch passes on the whole message of another process as `path`.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str = "") -> None:
        # Both are passed on as args, so that the exception can be pickled by a loader's process.
        super().__init__(path, reason)
        self.path = Path(path)
        self.reason = reason

    def __str__(self) -> str:
        return printable(f"{self.path}: {self.reason}") if self.reason else str(self.path)


class TooManyBrokenError(ValueError):
    """Too many images of a folder cannot be read."""


class BoundedFile(io.BufferedReader):
    """A file for `Image.open`, which asks for as many bytes as a header says: gigabytes, if it is damaged."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__(io.FileIO(path))
        self._size = os.stat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """At most `size` bytes. Python's own `read` allocates all of them, however short the file is."""
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, max(0, self._size - self.tell()))
        return super().read(size)


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
        names = [printable(f"{path} ({reason})") for path, reason in list(self.reasons.items())[:shown]]
        more = len(self) - len(names)
        return f"{head}: {', '.join(names)}{f' and {more} more' if more else ''}"


def list_images(folder: str | os.PathLike[str]) -> list[Path]:
    """List the images in `folder` and its sub-folders, sorted by path, without hidden files and folders.

    Symbolic links to folders inside `folder` are not followed. A warning names them, and images in formats
    that cannot be read here, with their numbers.

    Raises:
        FileNotFoundError: `folder` does not exist.
        NotADirectoryError: `folder` is a file.
        ValueError: no file in it has one of IMAGE_SUFFIXES or `readable_suffixes`.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"no such folder of images: {folder}")
    if not folder.is_dir():
        raise NotADirectoryError(f"expected a folder of images, got a file: {folder}")
    found: list[Path] = []
    others: list[Path] = []
    links: list[Path] = []
    suffixes = (*IMAGE_SUFFIXES, *readable_suffixes())
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in _in_utf8(folders, parent) if not name.startswith(".")]
        files = _in_utf8(files, parent)
        # This also skips "._name.jpg", which macOS puts beside a file and which is not an image.
        for name in sorted(name for name in files if not name.startswith(".")):
            if name.lower().endswith(suffixes):
                found.append(Path(parent, name))
            elif name.lower().endswith(_OTHER_SUFFIXES):
                others.append(Path(parent, name))
        links += [Path(parent, name) for name in folders if Path(parent, name).is_symlink()]
    said = [f"{counted(len(links), 'linked folder')}: {_names(links, folder)}"] if links else []
    if others:
        said.append(f"{counted(len(others), 'image')} {_how_to_read(others)}: {_names(others, folder)}")
    if said:
        warnings.warn(f"{folder}: left out {'; and '.join(said)}", stacklevel=2)
    if not found:
        but = f"; left out {'; and '.join(said)}" if said else ""
        raise ValueError(f"no images in {folder} (looked for {', '.join(suffixes)}{but})")
    return sorted(found, key=lambda path: path.as_posix())


@functools.cache
def readable_suffixes() -> tuple[str, ...]:
    """The suffixes of further formats that can be read here; registers the plug-ins that read them."""
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    with contextlib.suppress(ImportError):
        import pillow_jxl  # noqa: F401  (registers itself)
    there = [suffix for suffix, feature in _FEATURES.items() if features.check(feature)]
    return (*there, *(suffix for suffix, plugin in _PLUGINS.items() if sys.modules.get(plugin)))


def _how_to_read(paths: Sequence[Path]) -> str:
    kinds = sorted({path.suffix.lower() for path in paths})
    missing = sorted({_PACKAGES[_PLUGINS[kind]] for kind in kinds if kind in _PLUGINS})
    install = f"pip install {' '.join(missing)}" if missing else "convert them to use them"
    return f"in formats that are not read here ({', '.join(kinds)}; {install})"


def _names(paths: Sequence[Path], folder: Path) -> str:
    some = ", ".join(printable(path.relative_to(folder).as_posix()) for path in sorted(paths)[:5])
    return some + (", ..." if len(paths) > 5 else "")


def spread(values: Sequence[Item], count: int) -> list[Item]:
    """At most `count` of the values, evenly spread."""
    count = min(count, len(values))
    return [values[k * len(values) // count] for k in range(count)]


def _in_utf8(names: Sequence[str], parent: str) -> list[str]:
    """The names that are UTF-8; a warning names the others."""
    odd = [name for name in names if any("\ud800" <= letter <= "\udfff" for letter in name)]
    if odd:
        some = ", ".join(map(ascii, odd[:5])) + (", ..." if len(odd) > 5 else "")
        warnings.warn(
            f"{parent!a}: left out {counted(len(odd), 'name')} not in UTF-8: {some}; rename them",
            stacklevel=3,
        )
    return sorted({*names} - {*odd})


def is_inside(name: str, folder: str | os.PathLike[str]) -> bool:
    """Whether a file name leads to a place in `folder`; symbolic links in the folder may lead elsewhere."""
    whole = os.path.abspath(folder)
    return os.path.commonpath([whole, os.path.abspath(os.path.join(whole, name))]) == whole


def file_size(path: Path) -> int:
    """Size of a file in bytes; 0 for a link to nothing."""
    return path.stat().st_size if path.exists() else 0


def read_image(path: str | os.PathLike[str], *, exif: str = "apply") -> np.ndarray:
    """Read an image file as uint8 [H, W, 3], RGB.

    Grayscale is repeated over the channels, CMYK and palettes are converted, 16-bit gray is scaled by
    255 / 65535, an alpha channel is dropped, and only the first of several frames is read.

    Args:
        path: the file.
        exif: "apply" turns the image as its EXIF orientation says; "ignore" gives the stored pixels, in
            which some data sets are labelled. TIFF files are always turned.

    Raises:
        FileNotFoundError: no such file.
        BrokenImageError: empty, truncated, not an image, or with floating-point pixels (of undefined range).
        ValueError: another `exif`.
    """
    check_exif(exif)
    return _decode(path, lambda image: pil_to_rgb(image, exif=exif))


def read_for_size(
    path: str | os.PathLike[str], wanted: Callable[[tuple[int, int]], tuple[int, int]], *, exif: str = "apply"
) -> tuple[np.ndarray, tuple[int, int]]:
    """Read an image that is to be resized, with less work and memory where it is large.

    A JPEG is decoded at 1/2, 1/4 or 1/8 of its size, and others are averaged over squares of pixels, as long
    as each side stays at least twice the one wanted.

    Args:
        path: the file.
        wanted: gives the height and width wanted for those of the whole image.
        exif: see `read_image`.

    Returns:
        Pixels as `read_image` gives them, and the height and width of the whole image.

    Raises:
        FileNotFoundError, BrokenImageError, ValueError: as `read_image`.
    """
    check_exif(exif)

    def read(image: Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
        size = _size(image, exif)
        turned = size != (image.height, image.width)
        height, width = wanted(size)[::-1] if turned else wanted(size)
        image.draft(None, (2 * width, 2 * height))  # type: ignore[arg-type]
        factor = max(1, min(image.height // (2 * height), image.width // (2 * width)))
        large = image.height * image.width > _LARGE
        with _ONE_LARGE if large else contextlib.nullcontext():
            pixels = _to_rgb(image, exif, factor)
            image.close()  # frees its pixels before the next one is decoded
        return pixels, size

    return _decode(path, read)


def image_size(path: str | os.PathLike[str], *, exif: str = "apply") -> tuple[int, int]:
    """Height and width of `read_image(path, exif=exif)`, from the header only; raises the same errors."""
    check_exif(exif)
    return _decode(path, lambda image: _size(image, exif))


def read_labelled(
    path: str | os.PathLike[str],
    size: tuple[int, int],
    exif: str = "auto",
    at_least: tuple[int, int] | None = None,
) -> tuple[np.ndarray, str | None]:
    """Read an image whose labels have a known size, so that they fit.

    Where only one way to treat the EXIF orientation gives that size, it is chosen. Where both do (an image
    that is mirrored or upside down, or square), `exif` decides.

    Args:
        path: the file.
        size: height and width that the labels say.
        exif: "apply", "ignore", or "auto", which is "apply" but says so.
        at_least: height and width that suffice: a JPEG file that is more than twice as large is decoded at
            1/2, 1/4 or 1/8 of its size, but no smaller than this.

    Returns:
        The image as `read_image` gives it, but for `at_least`, and what a user should be told, if anything.

    Raises:
        FileNotFoundError, BrokenImageError, ValueError: as `read_image`.
    """
    check_exif(exif, ("auto", *EXIF))

    def read(image: Image.Image) -> tuple[np.ndarray, str | None]:
        way, note = _fitting(image, size, exif)
        turned = way == "apply" and _orientation(image) in _TURNED
        stored = image.size if turned else image.size[::-1]
        if at_least is not None and stored == tuple(size):
            image.draft(None, at_least if turned else at_least[::-1])
        return pil_to_rgb(image, exif=way), note

    return _decode(path, read)


def _size(image: Image.Image, exif: str) -> tuple[int, int]:
    turned = exif == "apply" and _orientation(image) in _TURNED
    return (image.width, image.height) if turned else (image.height, image.width)


def _orientation(image: Image.Image) -> int:
    # Pillow turns TIFF files itself, size and pixels, and leaves no choice.
    return 1 if image.format == "TIFF" else image.getexif().get(_ORIENTATION, 1)


def _fitting(image: Image.Image, size: tuple[int, int], exif: str) -> tuple[str, str | None]:
    wanted = "apply" if exif == "auto" else exif
    value = _orientation(image)
    if value not in _TURNS:
        return wanted, None
    stored = image.height, image.width
    turned = stored[::-1] if value in _TURNED else stored
    fitting = [way for way, its in zip(EXIF, (turned, stored), strict=True) if its == tuple(size)]
    if len(fitting) == 1:
        done = "applied" if fitting[0] == "apply" else "ignored"
        note = f"the labels fit only with EXIF orientation {value} {done}, so it is {done}"
        return fitting[0], None if fitting[0] == wanted else note
    note = (
        f"the labels fit with EXIF orientation {value} applied or ignored, so it is applied; set the data "
        "set's exif='ignore' if they are in stored pixels, or exif='apply' if not"
    )
    return wanted, note if fitting and exif == "auto" else None


def check_exif(exif: str, choices: Sequence[str] = EXIF) -> None:
    """Raise ValueError unless `exif` is one of `choices`."""
    if exif not in choices:
        raise ValueError(f"exif: expected {' or '.join(map(repr, choices))}, got {exif!r}")


def _decode(path: str | os.PathLike[str], use: Callable[[Image.Image], Result]) -> Result:
    """Call `use` with the opened image; any decoder failure becomes a BrokenImageError."""
    if not os.path.isfile(path):
        if os.path.exists(path):  # reading a pipe would wait for ever
            raise BrokenImageError(path, "not a file but a folder, a pipe or a device")
        if os.path.islink(path):
            raise BrokenImageError(path, "a link to a file that does not exist")
    with BoundedFile(path) as file:
        if not file.read(1):
            raise BrokenImageError(path, "the file is empty")
        file.seek(0)
        if os.fspath(path).lower().endswith(_OPTIONAL):
            readable_suffixes()
        try:
            with Image.open(file) as image:
                return use(image)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise almost any type on damaged data
            raise BrokenImageError(path, _reason(error, Path(path).suffix.lower())) from error


def _reason(error: Exception, suffix: str) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        plugin = _PLUGINS.get(suffix)
        if plugin and not sys.modules.get(plugin):
            return f"{suffix} files need pip install {_PACKAGES[plugin]}"
        return "not an image in a known format"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {max_megapixels():.0f} megapixels; --max-megapixels raises the limit"
    return str(error) or type(error).__name__


def max_megapixels() -> float:
    """The size of the largest image that is read, in millions of pixels."""
    return 2 * (Image.MAX_IMAGE_PIXELS or float("inf")) / 1e6


def set_max_megapixels(limit: float) -> None:
    """Sets `max_megapixels` of this process, and of those that it forks.

    It is Pillow's limit, which is against small files that unpack to a full memory.

    Raises:
        ValueError: `limit` is not above 0.
    """
    if not limit > 0:
        raise ValueError(f"max_megapixels: expected a number above 0, got {limit}")
    Image.MAX_IMAGE_PIXELS = int(limit * 1e6 / 2)


def pil_to_rgb(image: Image.Image, *, exif: str = "apply") -> np.ndarray:
    """A PIL image as uint8 [H, W, 3], RGB, converted as `read_image` does; ValueError where it cannot be."""
    return _to_rgb(image, exif, 1)


def _to_rgb(image: Image.Image, exif: str, factor: int) -> np.ndarray:
    """The same, averaged over squares of `factor` x `factor` pixels."""
    turn = _TURNS.get(_orientation(image)) if exif == "apply" else None
    if turn is not None and factor == 1:
        # Not by ImageOps.exif_transpose, which also writes the EXIF data again and fails where it is damaged.
        image = image.transpose(turn)
    if image.mode == "F":
        raise ValueError("floating-point pixels, whose range is not defined")
    if image.mode == "RGB" and factor == 1 and image.height * image.width <= _PIXELS_AT_ONCE:
        return np.array(image)
    height, width = -(-image.height // factor), -(-image.width // factor)
    rgb: np.ndarray = np.empty((height, width, 3), dtype=np.uint8)
    rows = max(1, _PIXELS_AT_ONCE // (image.width * factor))  # a large image would be in memory several times
    for top in range(0, height, rows):
        bottom = min((top + rows) * factor, image.height)
        part = image.crop((0, top * factor, image.width, bottom))
        part = Image.fromarray(_gray(part)) if image.mode.startswith("I") else part
        rgb[top : top + rows] = part.convert("RGB").reduce(factor)
    if turn is not None and factor > 1:
        return np.array(Image.fromarray(rgb).transpose(turn))
    return rgb


def _gray(image: Image.Image) -> np.ndarray:
    gray = np.asarray(image).astype(np.float64)
    if gray.min() < 0 or gray.max() > 65535:
        raise ValueError("32-bit pixels outside 0..65535, whose range is not defined")
    return np.rint(gray * (255 / 65535)).astype(np.uint8)
