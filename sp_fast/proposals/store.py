"""The result of a run on a folder of images: COCO-format JSON, and the seeds in a file beside it.

During a run, results are appended in `<out>.partial/`: `manifest.json` (options and images), `records.jsonl`
(one line per finished batch) and `seeds.bin` (raw float16 rows). A line counts once its newline is written,
which is after its seeds; the rest of an interrupted write is truncated at the next start. The two final files
are written atomically.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from sp_fast.files import replacing, write_text

_FORMAT = 1
_SEED_BYTES = 2


@dataclass(frozen=True)
class ImageRecord:
    """The proposals of one image.

    Attributes:
        index: position of the image in the run's sorted list.
        height, width: size of the image in pixels, with the EXIF orientation applied.
        masks: one dict per mask with counts, area, bbox and score, best first.
        seeds: float16 [len(masks), D].
    """

    index: int
    height: int
    width: int
    masks: list[dict[str, Any]]
    seeds: np.ndarray


def seeds_path(out: Path) -> Path:
    """Path of the seeds of `out`: masks.json -> masks.seeds.safetensors."""
    return out.with_name(f"{out.stem}.seeds.safetensors")


class ProposalStore:
    """The results of a run so far, on disk.

    Args:
        out: final JSON file.
        images: (name relative to the folder, size in bytes) of every image, sorted.
        options: everything the result depends on, as JSON values.
        channels: number of channels of the seeds, D.
        restart: discard what an interrupted run left.
        overwrite: replace an existing `out` at the end.

    Raises:
        FileExistsError: `out` exists and `overwrite` is not set.
        ValueError: an interrupted run had other options or images; the message lists the differences.
        BlockingIOError: another process is writing `out`.
    """

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
        self.out = out
        self.names = [name for name, _ in images]
        self._options = options
        self._channels = channels
        if out.is_dir():
            raise IsADirectoryError(f"out: expected a file to write, got the folder {out}")
        if out.exists() and not overwrite:
            raise FileExistsError(f"out: {out} already exists; choose another file, or pass --overwrite")
        self.partial = out.with_name(f"{out.name}.partial")
        if restart and self.partial.exists():
            shutil.rmtree(self.partial)
        manifest = {
            "format": _FORMAT,
            "options": json.loads(json.dumps(options)),
            "channels": channels,
            "images": [list(image) for image in images],
        }
        self.partial.mkdir(parents=True, exist_ok=True)
        path = self.partial / "manifest.json"
        if path.exists():
            _check_same(json.loads(path.read_text()), manifest, self.partial)
        else:
            write_text(json.dumps(manifest), path)
        self._records = _open(self.partial / "records.jsonl")
        _lock(self._records, out)
        self._seeds = _open(self.partial / "seeds.bin")
        self._lines: list[int] = []  # where each line starts
        self.done: dict[int, int] = {}  # image -> its line
        self._read_back()

    def _read_back(self) -> None:
        """Read the complete lines, and truncate what follows them."""
        self._records.seek(0)
        end = rows = 0
        for line in self._records:
            if not line.endswith(b"\n"):
                break
            for record in json.loads(line):
                self.done[record["index"]] = len(self._lines)
                rows = max(rows, record["row"] + len(record["masks"]))
            self._lines.append(end)
            end += len(line)
        self._records.truncate(end)
        self._records.seek(end)
        self._rows = rows
        self._seeds.truncate(rows * self._row_bytes)
        self._seeds.seek(rows * self._row_bytes)

    @property
    def _row_bytes(self) -> int:
        return self._channels * _SEED_BYTES

    def append(self, records: Sequence[ImageRecord]) -> None:
        """Add the records of one batch: all of them or, after a crash, none."""
        lines = []
        for record in records:
            expected = (len(record.masks), self._channels)
            if record.seeds.shape != expected or record.seeds.dtype != np.float16:
                raise ValueError(
                    f"seeds: expected float16 {list(expected)}, got {record.seeds.dtype} "
                    f"{list(record.seeds.shape)}"
                )
            self._seeds.write(np.ascontiguousarray(record.seeds).tobytes())
            lines.append(
                {
                    "index": record.index,
                    "height": record.height,
                    "width": record.width,
                    "masks": record.masks,
                    "row": self._rows,
                }
            )
            self._rows += len(record.masks)
        self._seeds.flush()
        start = self._records.tell()
        self._records.write(json.dumps(lines, separators=(",", ":")).encode() + b"\n")
        self._records.flush()
        for record in records:
            self.done[record.index] = len(self._lines)
        self._lines.append(start)

    def finish(self, skipped: dict[str, str]) -> int:
        """Write the final files and remove the partial ones.

        Args:
            skipped: name of each unreadable image -> reason.

        Returns:
            The number of masks.
        """
        seeds = seeds_path(self.out)
        with replacing(seeds) as file:
            self._write_seeds(file)
        with replacing(self.out) as file:
            count = self._write_json(file, skipped)
        self.close()
        shutil.rmtree(self.partial)
        return count

    def close(self) -> None:
        """Close the partial files; a later run can resume from them."""
        self._records.close()
        self._seeds.close()

    def discard(self) -> None:
        """Remove everything that this run has written."""
        self.close()
        shutil.rmtree(self.partial)

    def _in_order(self) -> Iterator[dict[str, Any]]:
        """Yield the records by image index; a line stays in memory until all its records are yielded."""
        waiting: dict[int, dict[int, dict[str, Any]]] = {}
        with open(self.partial / "records.jsonl", "rb") as file:
            for index in sorted(self.done):
                line = self.done[index]
                if line not in waiting:
                    file.seek(self._lines[line])
                    waiting[line] = {record["index"]: record for record in json.loads(file.readline())}
                yield waiting[line].pop(index)
                if not waiting[line]:
                    del waiting[line]

    def _write_seeds(self, out: BinaryIO) -> None:
        # The safetensors format: length of the header, the header in JSON padded to 8 bytes, the rows.
        # Written by hand because the rows of a large folder may not fit in memory.
        size = self._rows * self._row_bytes
        entry = {"dtype": "F16", "shape": [self._rows, self._channels], "data_offsets": [0, size]}
        header = json.dumps({"seeds": entry}, separators=(",", ":")).encode()
        header += b" " * (-len(header) % 8)
        out.write(len(header).to_bytes(8, "little") + header)
        with open(self.partial / "seeds.bin", "rb") as rows:
            for record in self._in_order():
                rows.seek(record["row"] * self._row_bytes)
                out.write(rows.read(len(record["masks"]) * self._row_bytes))

    def _write_json(self, out: BinaryIO, skipped: dict[str, str]) -> int:
        info = {
            "description": "saliency mask proposals",
            "seeds": seeds_path(self.out).name,
            "options": self._options,
            "skipped": [{"file_name": name, "reason": why} for name, why in sorted(skipped.items())],
        }
        out.write(b'{"info":' + _json(info))
        out.write(b',"categories":[{"id":1,"name":"object"}],"images":[')
        for number, record in enumerate(self._in_order()):
            image = {
                "id": record["index"] + 1,
                "file_name": self.names[record["index"]],
                "height": record["height"],
                "width": record["width"],
            }
            out.write((b",\n" if number else b"\n") + _json(image))
        out.write(b'],"annotations":[')
        row = 0
        for record in self._in_order():
            for mask in record["masks"]:
                annotation = {
                    "id": row + 1,
                    "image_id": record["index"] + 1,
                    "category_id": 1,
                    "segmentation": {"size": [record["height"], record["width"]], "counts": mask["counts"]},
                    "bbox": mask["bbox"],
                    "area": mask["area"],
                    "iscrowd": 0,
                    "score": mask["score"],
                    "seed_row": row,
                }
                out.write((b",\n" if row else b"\n") + _json(annotation))
                row += 1
        out.write(b"]}\n")
        return row


def _check_same(before: dict[str, Any], now: dict[str, Any], partial: Path) -> None:
    """Raise ValueError that lists how an interrupted run differs from this one."""
    differences = []
    if before.get("format") != now["format"]:
        differences.append("it was written by another version")
    else:
        old, new = before["options"], now["options"]
        differences += [
            f"{name}: {old.get(name)} before, {new.get(name)} now"
            for name in sorted(set(old) | set(new))
            if old.get(name) != new.get(name)
        ]
        images_before = dict(before["images"])
        images_now = dict(now["images"])
        for word, names in (
            ("added", [name for name in images_now if name not in images_before]),
            ("removed", [name for name in images_before if name not in images_now]),
            ("changed", [n for n in images_now if images_before.get(n, images_now[n]) != images_now[n]]),
        ):
            if names:
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                differences.append(f"images {word}: {', '.join(names[:3])}{more}")
    if differences:
        raise ValueError(
            f"the interrupted run in {partial} differs from this one ({'; '.join(differences)}). Resume it "
            "with its options and images, or pass --restart to discard it and start over"
        )


def _open(path: Path) -> BinaryIO:
    path.touch()
    return open(path, "r+b")


def _lock(file: BinaryIO, out: Path) -> None:
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise BlockingIOError(
            f"out: another process is writing {out}; wait for it, or choose another file"
        ) from None


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
