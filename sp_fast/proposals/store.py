"""The result of a run on a folder of images: COCO-format JSON, and proposals' seeds and store beside it.

During a run, results are kept in `<out>.partial/`, see `shards`. The final files are written atomically.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from sp_fast.data.images import BrokenImages, TooManyBrokenError
from sp_fast.data.prepared import check_outputs
from sp_fast.data.store import write_stored_masks
from sp_fast.files import replacing, write_text
from sp_fast.locks import turn_in
from sp_fast.proposals import shards
from sp_fast.proposals.records import FinishedRecords, ImageRecord, RecordFile
from sp_fast.proposals.shards import WHOLE, Shard

SEEDS_HASH = "seeds_sha256"
_UNRECORDED = {"refine": "none"}  # options that runs of earlier versions did not record


def seeds_path(out: Path) -> Path:
    """Path of the seeds of `out`: masks.json and masks.arrow -> masks.seeds.safetensors."""
    name = out.stem if out.suffix in (".json", ".arrow") else out.name
    return out.with_name(f"{name}.seeds.safetensors")


def check_json(out: Path) -> None:
    """Raise ValueError unless the name of the file to write ends in .json."""
    if out.suffix != ".json":
        raise ValueError(f"out: expected a file name that ends in .json, got {out}")


class RecordStore(ABC):
    """The results of a run so far, on disk.

    Several processes, one per shard, write one file together: the one that finishes last merges. A run may
    continue with another number of shards; finished images are kept.

    Args:
        out: final JSON file.
        images: (name relative to the folder, size in bytes) of every image, sorted.
        options: everything the result depends on, as JSON values; "exif" is among them.
        shard: the part of the images that this process makes.
        block: number of consecutive images that one shard takes together. An interrupted run keeps its size.
        restart: discard what an interrupted run left; not with several shards.
        overwrite: replace an existing `out` at the end.

    Attributes:
        part: positions of the images of this shard.
        block: see above.
        done: positions of those that have a record; after merging, of all images that have one.
        skipped: name of each image that is known to be unreadable -> reason.
        missing: after `finish`: numbers of the shards that are not finished.
        merged: after `finish`: whether this process has written the final file.

    Raises:
        FileExistsError: `out` exists and `overwrite` is not set.
        ValueError: an interrupted run, or another shard, has other options or images; the message lists the
            differences. Or `restart` with several shards.
        BlockingIOError: another process works on this shard, or in another number of shards.
        OSError: the interrupted run's database is damaged.
    """

    def __init__(
        self,
        out: Path,
        images: Sequence[tuple[str, int]],
        options: dict[str, Any],
        *,
        shard: Shard = WHOLE,
        block: int = 1,
        restart: bool = False,
        overwrite: bool = False,
    ) -> None:
        self.out, self.shard, self._options = out, shard, options
        self._names = [name for name, _ in images]
        self.missing: list[int] = []
        self.merged = False
        self.partial = out.with_name(f"{out.name}.partial")
        check_outputs([out], overwrite=overwrite)
        if restart and shard.total > 1:
            raise ValueError(
                f"restart: several processes would discard each other's work; delete {self.partial} instead"
            )
        self._open = contextlib.ExitStack()
        with turn_in(self.partial), self._open_or_close():
            check_outputs([out], overwrite=overwrite)  # another process may have merged meanwhile
            self._open.callback(os.close, shards.claim(self.partial, shard, out, restart=restart))
            self.block = self._agree(images, block)
            self.part = shard.part(len(images), self.block)
            self.done, self.skipped = self._known()
            self._finished = self.partial / f"{shard.stem}.done"
            self._records: RecordFile | None = None
            if not self._finished.exists():
                self._records = RecordFile(self.partial / f"{shard.stem}.sqlite")
                self._open.callback(self._records.close)
                self.done |= self._records.places()
            self.done &= set(self.part)

    @contextlib.contextmanager
    def _open_or_close(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            shards.remove_unused(self.partial)
            raise

    def _agree(self, images: Sequence[tuple[str, int]], block: int) -> int:
        """Raise unless all shards have the same options and images; returns the block of the first."""
        manifest = self.partial / "manifest.json"
        now = json.dumps({"images": images, "options": self._options, "block": block})
        if not manifest.exists():
            write_text(now, manifest)
        before = json.loads(manifest.read_bytes())
        again = "pass --restart" if self.shard.total == 1 else "delete this folder"
        _check_same(before, json.loads(now), self.partial, again)
        return before["block"]

    def _known(self) -> tuple[set[int], dict[str, str]]:
        """Positions of the records in finished files, and the images that were skipped."""
        with FinishedRecords(shards.finished(self.partial)) as finished:
            return {place for (place,) in finished.in_order()}, finished.skipped()

    def todo(self) -> list[int]:
        """Positions of the images of this shard that are still to be read."""
        return [i for i in self.part if i not in self.done and self._names[i] not in self.skipped]

    def append(self, records: Sequence[ImageRecord]) -> None:
        """Add the records of one batch: all of them or, after a crash, none."""
        assert self._records is not None  # only a shard with nothing left to do has none
        self._records.append(records)
        self.done.update(record.index for record in records)

    def finish(self, skipped: dict[str, str]) -> int:
        """Finish this shard; if none is missing any more, write the final files and remove the partial ones.

        Args:
            skipped: name of each unreadable image of this shard -> reason.

        Returns:
            The number of masks: of all images if `merged`, otherwise of this shard.

        Raises:
            TooManyBrokenError: more than 5 % of all images cannot be read; nothing is left on disk.
        """
        if self._records is not None:
            self._records.finish(self._finished, skipped)
        self.skipped |= skipped
        with turn_in(self.partial):
            # Another process may have merged while this one waited for its turn: then all files are gone.
            there = self._finished.exists()
            self.missing = shards.missing(self.partial, self.shard.total) if there else []
            with FinishedRecords(shards.finished(self.partial)) as self._all:
                if self.missing or not there:
                    self.close()
                    shards.remove_unused(self.partial)
                    return self._masks_of_part()
                try:
                    count = self._merge()
                except OSError:
                    if self._finished.exists():
                        raise
                    return 0  # without working locks, another process has merged in the meantime
            self.merged = True
            self.close()
            shards.remove(self.partial, WHOLE)
        return count

    def _masks_of_part(self) -> int:
        part = set(self.part)
        counts = self._all.in_order("json_array_length(masks)")
        return sum(count for place, count in counts if place in part)

    def _merge(self) -> int:
        self.done = {place for (place,) in self._all.in_order()}
        done = {self._names[place] for place in self.done}
        self.skipped = {name: why for name, why in self._all.skipped().items() if name not in done}
        broken = BrokenImages()
        for name, why in self.skipped.items():
            broken.add(name, why)
        try:
            broken.check(len(self._names))
        except TooManyBrokenError:
            self.close()
            shards.remove(self.partial, WHOLE)
            raise
        lost = [name for name in self._names if name not in done and name not in self.skipped]
        if lost:
            raise OSError(
                f"{self.partial}: the records of {len(lost)} images are lost, such as {lost[0]}; delete this "
                "folder and run again"
            )
        return self._write(self.skipped)

    def close(self) -> None:
        """Close the partial files; a later run can resume from them."""
        self._open.close()

    def discard(self) -> None:
        """Remove everything that this shard has written, except finished files."""
        self.close()
        shards.remove(self.partial, self.shard)

    def _write(self, skipped: dict[str, str]) -> int:
        """Write the final files, the JSON file last; returns the number of masks."""
        with replacing(self.out) as file:
            return self._write_json(file, skipped)

    @abstractmethod
    def _write_json(self, out: BinaryIO, skipped: dict[str, str]) -> int:
        """Write the final JSON file; returns the number of masks."""

    def _images(self) -> Iterator[dict[str, Any]]:
        """The images in the final file's order: id, file_name, height and width of each."""
        for place, height, width in self._all.in_order("height", "width"):
            yield {"id": place + 1, "file_name": self._names[place], "height": height, "width": width}

    def _masks(self) -> Iterator[dict[str, Any]]:
        """The masks in the final file's order: image_id, size (of the image), counts, area, bbox, score."""
        for place, height, width, masks in self._all.in_order("height", "width", "masks"):
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
        **others: Any,
    ) -> None:
        check_json(out)
        self._channels = channels
        super().__init__(out, images, {**options, "channels": channels}, **others)

    def _write(self, skipped: dict[str, str]) -> int:
        with replacing(seeds_path(self.out)) as file:
            self._seeds_hash = self._write_seeds(file)
        return super()._write(skipped)

    def _write_seeds(self, out: BinaryIO) -> str:
        """Write all rows; returns their SHA-256, by which the two files know that they belong together."""
        # The safetensors format: length of the header, the header in JSON padded to 8 bytes, the rows.
        # Written by hand because the rows of a large folder may not fit in memory.
        size = sum(length for _, length in self._all.in_order("length(seeds)"))
        digest = hashlib.sha256()
        out.write(self._seeds_header(size, digest.hexdigest()))
        for _, rows in self._all.in_order("seeds"):
            digest.update(rows)
            out.write(rows)
        out.seek(0)
        out.write(self._seeds_header(size, digest.hexdigest()))
        return digest.hexdigest()

    def _seeds_header(self, size: int, sha256: str) -> bytes:
        shape = [size // (2 * self._channels), self._channels]
        entry = {"dtype": "F16", "shape": shape, "data_offsets": [0, size]}
        parts = {"__metadata__": {SEEDS_HASH: sha256}, "seeds": entry}
        header = json.dumps(parts, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        return len(header).to_bytes(8, "little") + header

    def _write_json(self, out: BinaryIO, skipped: dict[str, str]) -> int:
        info = {
            "description": "saliency mask proposals",
            "seeds": seeds_path(self.out).name,
            SEEDS_HASH: self._seeds_hash,
            "exif": self._options["exif"],
            "options": {name: value for name, value in self._options.items() if name != "channels"},
            "skipped": [{"file_name": name, "reason": why} for name, why in sorted(skipped.items())],
        }
        return write_stored_masks(out, self.out, info, self._images, self._masks_and_seeds)

    def _masks_and_seeds(self) -> Iterator[dict[str, Any]]:
        return ({**mask, "seed_row": row} for row, mask in enumerate(self._masks()))


def _check_same(before: dict[str, Any], now: dict[str, Any], partial: Path, again: str) -> None:
    """Raise ValueError that lists how an interrupted run differs; `again` says how to start over."""
    old, new = before["options"], now["options"]
    old = {**{name: value for name, value in _UNRECORDED.items() if name in new}, **old}
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
            f"with its options and images, or {again} to discard it and start over"
        )
