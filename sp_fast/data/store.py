"""Masks as a memory-mapped Arrow file beside the COCO-format file: opens instantly, shared by processes.

One row is an image (id, file_name, height, width) with the list of its masks, as `load_coco` gives them.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import time
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from pycocotools import mask as coco_mask

from sp_fast.data.coco import numbered, object_categories, write_masks
from sp_fast.data.rle import rle_areas, to_rle
from sp_fast.files import replacing, sha256

_ROWS = 256  # images per record batch; only the last has fewer
_KEY = b"sp_fast.store"
_CRC = b"crc32"  # of a record batch, in its metadata
# A file can change twice within one tick of its time stamp.
_TICK = 2_000_000_000  # ns


def store_path(annotations: str | os.PathLike[str]) -> Path:
    """Path of the store of an annotation file: masks.json -> masks.arrow."""
    return Path(annotations).with_suffix(".arrow")


def can_store() -> bool:
    """Whether pyarrow is installed."""
    return importlib.util.find_spec("pyarrow") is not None


def open_store(annotations: str | os.PathLike[str]) -> MaskStore | None:
    """The store to read instead of an annotation file: the file itself (.arrow), or the one beside it.

    None if there is none beside it or, with a warning, if that one cannot be used: made from other content,
    damaged, or without pyarrow.

    Raises:
        FileNotFoundError, ValueError, ModuleNotFoundError: see `MaskStore`; for an .arrow file only.
    """
    path, beside = Path(annotations), store_path(annotations)
    if path == beside:
        return MaskStore(path)
    if not (path.is_file() and beside.is_file()):
        return None
    try:
        store = MaskStore(beside)
        if store.is_of(path):
            return store
        reason = f"{beside}: made from another {path.name}; make it again with sp-fast data store --overwrite"
    except (ValueError, ModuleNotFoundError) as error:
        reason = str(error)
    warnings.warn(f"{reason}. {path} is read instead.", stacklevel=2)
    return None


class MaskStore:
    """The images and masks of a store, as `load_coco` gives them.

    Pickled as its path, so that processes share the pages of the file.

    Attributes:
        categories, info: those of the annotation file.
        images_checked: whether the sizes of all images were compared with the files.

    Args:
        path: the Arrow file.
        source: the `source` that it must have when another process opens it again.

    Raises:
        FileNotFoundError: no such file.
        ModuleNotFoundError: pyarrow is not installed.
        ValueError: not a store, or made from another source.
    """

    def __init__(self, path: str | os.PathLike[str], source: dict[str, Any] | None = None) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no such store of masks: {self.path}")
        if not can_store():
            raise ModuleNotFoundError(f"{self.path}: needs pyarrow; pip install 'sp_fast[mmdet]'")
        import pyarrow as pa

        try:
            options = pa.ipc.IpcReadOptions(use_threads=False)  # a forked process has no threads
            self._file = pa.ipc.open_file(pa.memory_map(os.fspath(self.path)), options=options)
            about = json.loads(self._file.schema.metadata[_KEY])
        except (pa.ArrowException, OSError, KeyError, TypeError) as error:
            raise ValueError(f"{self.path}: not a store of sp-fast data store ({error})") from None
        self.source: dict[str, Any] = about["source"]
        self.categories: list[dict[str, Any]] = about["categories"]
        self.info: Any = about["info"]
        self.images_checked: bool = about["images_checked"]
        if source not in (None, self.source):
            raise ValueError(f"{self.path}: replaced while it was in use; start again")
        self._sound: set[int] = set()  # record batches whose checksum was compared
        last = self._file.num_record_batches - 1
        self._length = last * _ROWS + self._file.get_batch(last).num_rows if last >= 0 else 0

    def __reduce__(self) -> tuple[Any, ...]:
        return MaskStore, (self.path, self.source)

    def __len__(self) -> int:
        return self._length

    def is_of(self, annotations: Path) -> bool:
        """Whether the store was made from this very file: by size and time stamp, else by SHA-256."""
        stat = annotations.stat()
        if stat.st_size != self.source["size"]:
            return False
        if stat.st_mtime_ns == self.source["mtime_ns"]:
            return True
        return _sha256(annotations, stat.st_size, stat.st_mtime_ns) == self.source["sha256"]

    def entry(self, row: int, *, tight_boxes: bool = False) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The entry of an image and its annotations.

        Args:
            row: place of the image in the file.
            tight_boxes: take `bbox` and `area` from the masks.

        Raises:
            ValueError: the file is damaged there.
        """
        image = self._sound_batch(row // _ROWS).slice(row % _ROWS, 1).to_pylist()[0]
        annotations = image.pop("masks")
        for one in annotations:
            counts, other = one.pop("counts"), one.pop("segmentation")
            size = [image["height"], image["width"]]
            one["segmentation"] = json.loads(other) if counts is None else {"size": size, "counts": counts}
            one["category_id"] = self.categories[one.pop("category")]["id"]
            one["image_id"] = image["id"]
        if tight_boxes and annotations:
            rles = [to_rle(one["segmentation"], image["height"], image["width"]) for one in annotations]
            for one, box, area in zip(annotations, coco_mask.toBbox(rles), rle_areas(rles), strict=True):
                one["bbox"], one["area"] = box.tolist(), float(area)
        return image, annotations

    def file_names(self) -> list[str]:
        """The file name of each image."""
        return [name for batch in self._batches() for name in batch["file_name"].to_pylist()]

    def sizes(self) -> np.ndarray:
        """Height and width of each image, int32 [images, 2]."""
        sides = [np.stack([batch["height"], batch["width"]], axis=1) for batch in self._batches()]
        return np.concatenate([np.empty((0, 2), np.int32), *sides])

    def objects(self, *, tight_boxes: bool = False) -> np.ndarray:
        """Number of masks of each image that have an area and a box inside it, int64 [images].

        If boxes are taken from the masks, all masks count.
        """
        found: list[np.ndarray] = [np.empty(0, np.int64)]
        for batch in self._batches():
            masks = batch["masks"]
            of_image: np.ndarray = np.repeat(np.arange(len(masks)), np.diff(masks.offsets))
            if not tight_boxes:
                x, y, w, h = np.asarray(masks.values.field("bbox").values).reshape(-1, 4).T
                height, width = (np.asarray(batch[side])[of_image] for side in ("height", "width"))
                inside = (np.minimum(x + w, width) > np.maximum(x, 0)) & (
                    np.minimum(y + h, height) > np.maximum(y, 0)
                )
                of_image = of_image[inside & (np.asarray(masks.values.field("area")) > 0)]
            found.append(np.bincount(of_image, minlength=len(masks)))
        return np.concatenate(found)

    def seed_rows_within(self, rows: int) -> bool:
        """Whether every mask has a `seed_row` from 0 to rows - 1."""
        for batch in self._batches():
            column = batch["masks"].values.field("seed_row")
            if column.null_count or not all(0 <= row < rows for row in _ends(np.asarray(column))):
                return False
        return True

    def coco(self, most: int) -> dict[str, Any]:
        """A COCO-format dict of all images, with about `most` annotations, of evenly spread images."""
        total = sum(len(batch["masks"].values) for batch in self._batches())
        every = -(-total // most) or 1
        names, sizes = self.file_names(), self.sizes().tolist()
        ids = [one for batch in self._batches() for one in batch["id"].to_pylist()]
        images = [
            {"id": one, "file_name": name, "height": height, "width": width}
            for one, name, (height, width) in zip(ids, names, sizes, strict=True)
        ]
        annotations = [one for row in range(0, len(self), every) for one in self.entry(row)[1]]
        return {"images": images, "annotations": annotations, "categories": self.categories}

    def _sound_batch(self, number: int) -> Any:
        batch, about = self._file.get_batch_with_custom_metadata(number)
        if number not in self._sound:
            if (about or {}).get(_CRC) != _checksum(batch):
                first = number * _ROWS
                raise ValueError(
                    f"{self.path}: damaged (checksum of images {first} to {first + batch.num_rows - 1}); "
                    "make it again with sp-fast data store --overwrite"
                )
            self._sound.add(number)
        return batch

    def _batches(self) -> Iterator[Any]:
        return map(self._file.get_batch, range(self._file.num_record_batches))


def write_store(
    path: Path,
    source: Path,
    coco: dict[str, Any],
    images: Iterable[dict[str, Any]],
    annotations: Iterable[dict[str, Any]],
    *,
    images_checked: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Write a store, some images at a time (atomic write).

    Args:
        path: file to write, see `store_path`.
        source: the finished annotation file that it is made from.
        coco: its categories and, if it has any, info.
        images: its images, in its order.
        annotations: its annotations, complete as `load_coco` gives them, in the order of their images.
        images_checked: see `MaskStore`.
        progress: called with the number of images that are written.

    Raises:
        ModuleNotFoundError: pyarrow is not installed.
        ValueError: a value that Arrow cannot hold, such as an id beyond 64 bits or a file name that is not
            UTF-8.
    """
    if not can_store():
        raise ModuleNotFoundError("a store of masks needs pyarrow; pip install 'sp_fast[mmdet]'")
    import pyarrow as pa

    about = {
        "source": _identity(source),
        "categories": coco["categories"],
        "info": coco.get("info"),
        "images_checked": images_checked,
    }
    places = {category["id"]: place for place, category in enumerate(coco["categories"])}
    image_id, images = _first_id(images)
    mask_id, annotations = _first_id(annotations)
    schema = _schema(image_id, mask_id).with_metadata({_KEY: json.dumps(about)})
    rows = _rows(images, annotations, places)
    done = 0
    try:
        with replacing(path) as file, pa.ipc.new_file(file, schema) as out:
            while part := list(islice(rows, _ROWS)):
                batch = pa.RecordBatch.from_pylist(part, schema=schema)
                as_read = pa.ipc.read_record_batch(batch.serialize(), schema)
                out.write_batch(batch, custom_metadata={_CRC: _checksum(as_read)})
                done += len(part)
                progress(done)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError) as error:
        raise ValueError(f"{path}: cannot be written ({error}); train without this store") from None


def write_stored_masks(
    file: BinaryIO,
    out: Path,
    info: dict[str, Any],
    images: Callable[[], Iterable[dict[str, Any]]],
    masks: Callable[[], Iterable[dict[str, Any]]],
) -> int:
    """Write masks of one class with `write_masks`, and their store where pyarrow is installed.

    A store that cannot be written is a warning: training reads the annotation file instead.

    Args:
        file: the open file that becomes `out`.
        out: the annotation file, beside which the store is written.
        info: any JSON values.
        images: gives the images in order; their sizes are those of the files.
        masks: gives the masks in the order of their images.

    Returns:
        The number of masks.
    """
    count = write_masks(file, info, images(), masks())
    if can_store():
        file.flush()
        coco = {"info": info, "categories": object_categories()}
        beside, entries = store_path(out), numbered(masks())
        try:
            write_store(beside, Path(file.name), coco, images(), entries, images_checked=True)
        except ValueError as error:
            warnings.warn(str(error), stacklevel=2)
    return count


def in_order(coco: dict[str, Any]) -> list[dict[str, Any]]:
    """The annotations in the order of their images, and in file order within an image."""
    places = {image["id"]: place for place, image in enumerate(coco["images"])}
    return sorted(coco["annotations"], key=lambda one: places[one["image_id"]])


def _rows(
    images: Iterable[dict], annotations: Iterable[dict], places: dict[Any, int]
) -> Iterator[dict[str, Any]]:
    left = iter(annotations)
    upcoming = next(left, None)
    for image in images:
        row = {key: image[key] for key in ("id", "file_name", "height", "width")}
        row["masks"] = masks = []
        while upcoming is not None and upcoming["image_id"] == image["id"]:
            masks.append(_mask(upcoming, places))
            upcoming = next(left, None)
        yield row
    if upcoming is not None:
        raise ValueError(f"annotation {upcoming['id']}: expected the annotations in the order of the images")


def _mask(annotation: dict[str, Any], places: dict[Any, int]) -> dict[str, Any]:
    segmentation, seed_row = annotation["segmentation"], annotation.get("seed_row")
    counts = segmentation["counts"] if isinstance(segmentation, dict) else None
    compressed = isinstance(counts, str)
    return {
        "id": annotation["id"],
        "counts": counts if compressed else None,
        "segmentation": None if compressed else json.dumps(segmentation),
        "bbox": annotation["bbox"],
        "area": annotation["area"],
        "category": places[annotation["category_id"]],
        "iscrowd": annotation["iscrowd"],
        "seed_row": seed_row if type(seed_row) is int else None,
    }


def _first_id(entries: Iterable[dict[str, Any]]) -> tuple[Any, Iterable[dict[str, Any]]]:
    """The id of the first entry, 0 without any; and all entries."""
    rest = iter(entries)
    first = list(islice(rest, 1))
    return first[0]["id"] if first else 0, chain(first, rest)


def _schema(image_id: Any, mask_id: Any) -> Any:
    """Columns of a store with ids of this kind: numbers or strings."""
    import pyarrow as pa

    kinds = [pa.string() if isinstance(one, str) else pa.int64() for one in (image_id, mask_id)]
    mask = pa.struct(
        {
            "id": kinds[1],
            "counts": pa.string(),
            "segmentation": pa.string(),  # JSON of what is not compressed run lengths
            "bbox": pa.list_(pa.float64(), 4),
            "area": pa.float64(),
            "category": pa.int32(),
            "iscrowd": pa.int8(),
            "seed_row": pa.int64(),
        }
    )
    image = {"id": kinds[0], "file_name": pa.string(), "height": pa.int32(), "width": pa.int32()}
    return pa.schema({**image, "masks": pa.list_(mask)})


def _checksum(batch: Any) -> bytes:
    crc = 0
    for column in batch.columns:
        for buffer in filter(None, column.buffers()):
            crc = zlib.crc32(buffer, crc)
    return b"%08x" % crc


def _identity(source: Path) -> dict[str, Any]:
    """Size, SHA-256 and, once it can be trusted, the time stamp of a file."""
    stat = source.stat()
    digest = sha256(source)
    settled = time.time_ns() - stat.st_mtime_ns > _TICK
    return {"size": stat.st_size, "sha256": digest, "mtime_ns": stat.st_mtime_ns if settled else None}


@functools.lru_cache(maxsize=16)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    return sha256(path)


def _ends(values: np.ndarray) -> list[int]:
    return [int(values.min()), int(values.max())] if len(values) else []
