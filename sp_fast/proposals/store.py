"""The result of a run on a folder of images: COCO-format JSON, and proposals' seeds in a file beside it.

During a run, results are kept in an SQLite database in `<out>.partial/`, where a killed run leaves whole
batches only. The two final files are written atomically.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sp_fast.data.coco import write_masks
from sp_fast.files import replacing
from sp_fast.locks import try_lock

# The lock on the folder excludes other processes, so that the database needs no shared memory, which network
# file systems lack. Without waiting for the disk, a commit survives a killed process, though not a power cut.
_SETUP = """
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS manifest (text TEXT);
CREATE TABLE IF NOT EXISTS images (place INTEGER PRIMARY KEY, height, width, masks TEXT, seeds BLOB);
"""


@dataclass(frozen=True)
class ImageRecord:
    """The masks of one image.

    Attributes:
        index: position of the image in the run's sorted list.
        height, width: size of the image in pixels, as it was read.
        masks: one dict per mask with counts, area, bbox and score, best first.
        seeds: float16 [len(masks), D]; of predictions: empty.
    """

    index: int
    height: int
    width: int
    masks: list[dict[str, Any]]
    seeds: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float16))


def seeds_path(out: Path) -> Path:
    """Path of the seeds of `out`: masks.json -> masks.seeds.safetensors, a.txt -> a.txt.seeds.safetensors."""
    name = out.stem if out.suffix == ".json" else out.name
    return out.with_name(f"{name}.seeds.safetensors")


class RecordStore(ABC):
    """The results of a run so far, on disk.

    Args:
        out: final JSON file.
        images: (name relative to the folder, size in bytes) of every image, sorted.
        options: everything the result depends on, as JSON values; "exif" is among them.
        restart: discard what an interrupted run left.
        overwrite: replace an existing `out` at the end.

    Attributes:
        done: positions of the images that have a record.

    Raises:
        FileExistsError: `out` exists and `overwrite` is not set.
        ValueError: an interrupted run had other options or images; the message lists the differences.
        BlockingIOError: another process is writing `out`.
        OSError: the interrupted run's database is damaged.
    """

    def __init__(
        self,
        out: Path,
        images: Sequence[tuple[str, int]],
        options: dict[str, Any],
        *,
        restart: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.out, self._options = out, options
        self._names = [name for name, _ in images]
        if out.is_dir():
            raise IsADirectoryError(f"out: expected a file to write, got the folder {out}")
        if out.exists() and not overwrite:
            raise FileExistsError(f"out: {out} already exists; choose another file, or pass --overwrite")
        self.partial = out.with_name(f"{out.name}.partial")
        self.partial.mkdir(parents=True, exist_ok=True)
        lock = try_lock(self.partial / "lock")
        if lock is None:
            raise BlockingIOError(
                f"out: another process is writing {out}; wait for it, or choose another file"
            )
        self._open = contextlib.ExitStack()
        self._open.callback(os.close, lock)
        if restart:
            for file in self.partial.glob("records.sqlite*"):
                file.unlink()
        self._records = sqlite3.connect(self.partial / "records.sqlite")
        self._open.callback(self._records.close)
        try:
            with self._database() as records:
                records.executescript(_SETUP)
                now = {"images": images, "options": options}
                before = records.execute("SELECT text FROM manifest").fetchone()
                if before is None:
                    records.execute("INSERT INTO manifest VALUES (?)", [json.dumps(now)])
                else:
                    _check_same(json.loads(before[0]), json.loads(json.dumps(now)), self.partial)
                self.done = {place for (place,) in records.execute("SELECT place FROM images")}
        except BaseException:
            self.close()
            raise

    @contextlib.contextmanager
    def _database(self) -> Iterator[sqlite3.Connection]:
        """One transaction; SQLite's errors (disk full, damaged file) become OSError."""
        try:
            with self._records:
                yield self._records
        except sqlite3.Error as error:
            raise OSError(
                f"{self.partial / 'records.sqlite'}: {error}; make room, or pass --restart"
            ) from error

    def append(self, records: Sequence[ImageRecord]) -> None:
        """Add the records of one batch: all of them or, after a crash, none."""
        rows = [(r.index, r.height, r.width, json.dumps(r.masks), r.seeds.tobytes()) for r in records]
        with self._database() as database:
            database.executemany("INSERT INTO images VALUES (?, ?, ?, ?, ?)", rows)
        self.done.update(record.index for record in records)

    def finish(self, skipped: dict[str, str]) -> int:
        """Write the final file and remove the partial ones.

        Args:
            skipped: name of each unreadable image -> reason.

        Returns:
            The number of masks.
        """
        with self._database(), replacing(self.out) as file:
            count = self._write_json(file, skipped)
        self.discard()
        return count

    def close(self) -> None:
        """Close the partial files; a later run can resume from them."""
        self._open.close()

    def discard(self) -> None:
        """Remove everything that this run has written, except finished files."""
        self.close()
        shutil.rmtree(self.partial)

    @abstractmethod
    def _write_json(self, out: BinaryIO, skipped: dict[str, str]) -> int:
        """Write the final file; returns the number of masks."""

    def _in_order(self, columns: str) -> Iterator[Any]:
        return self._records.execute(f"SELECT {columns} FROM images ORDER BY place")

    def _images(self) -> Iterator[dict[str, Any]]:
        """The final file's images."""
        for place, height, width in self._in_order("place, height, width"):
            yield {"id": place + 1, "file_name": self._names[place], "height": height, "width": width}

    def _masks(self) -> Iterator[dict[str, Any]]:
        """The masks of all images, with the id and the size of their image."""
        for place, height, width, masks in self._in_order("place, height, width, masks"):
            for mask in json.loads(masks):
                yield {"image_id": place + 1, "size": [height, width], **mask}


class ProposalStore(RecordStore):
    """The proposals of a run; see `RecordStore`. `channels` is the number of channels of the seeds, D."""

    def __init__(
        self,
        out: Path,
        images: Sequence[tuple[str, int]],
        options: dict[str, Any],
        channels: int,
        *,
        restart: bool = False,
        overwrite: bool = False,
    ) -> None:
        self._channels = channels
        super().__init__(out, images, {**options, "channels": channels}, restart=restart, overwrite=overwrite)

    def finish(self, skipped: dict[str, str]) -> int:
        """Write the final files and remove the partial ones; see `RecordStore.finish`."""
        with self._database(), replacing(seeds_path(self.out)) as file:
            self._write_seeds(file)
        return super().finish(skipped)

    def _write_seeds(self, out: BinaryIO) -> None:
        # The safetensors format: length of the header, the header in JSON padded to 8 bytes, the rows.
        # Written by hand because the rows of a large folder may not fit in memory.
        size = sum(length for (length,) in self._in_order("length(seeds)"))
        shape = [size // (2 * self._channels), self._channels]
        entry = {"dtype": "F16", "shape": shape, "data_offsets": [0, size]}
        header = json.dumps({"seeds": entry}, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        out.write(len(header).to_bytes(8, "little") + header)
        for (rows,) in self._in_order("seeds"):
            out.write(rows)

    def _write_json(self, out: BinaryIO, skipped: dict[str, str]) -> int:
        info = {
            "description": "saliency mask proposals",
            "seeds": seeds_path(self.out).name,
            "exif": self._options["exif"],
            "options": {name: value for name, value in self._options.items() if name != "channels"},
            "skipped": [{"file_name": name, "reason": why} for name, why in sorted(skipped.items())],
        }
        annotations = ({**mask, "seed_row": row} for row, mask in enumerate(self._masks()))
        return write_masks(out, info, self._images(), annotations)


def _check_same(before: dict[str, Any], now: dict[str, Any], partial: Path) -> None:
    """Raise ValueError that lists how an interrupted run differs from this one."""
    old, new = before["options"], now["options"]
    differences = [
        f"{name}: {old.get(name)} before, {new.get(name)} now"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]
    was, now_is = dict(before["images"]), dict(now["images"])
    for word, names in (
        ("added", [name for name in now_is if name not in was]),
        ("removed", [name for name in was if name not in now_is]),
        ("changed", [name for name in now_is if was.get(name, now_is[name]) != now_is[name]]),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            differences.append(f"images {word}: {', '.join(names[:3])}{more}")
    if differences:
        raise ValueError(
            f"the interrupted run in {partial} differs from this one ({'; '.join(differences)}). Resume it "
            "with its options and images, or pass --restart to discard it and start over"
        )
