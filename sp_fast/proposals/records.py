"""Records of images in SQLite files: each written by one process; finished ones read together, in order."""

from __future__ import annotations

import contextlib
import heapq
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

# A separate lock file excludes other processes (see `shards`), so that the database needs neither shared
# memory nor SQLite's locks, which network file systems may lack. Without waiting for the disk, a commit
# survives a killed process, though not a power cut.
_SETUP = """
PRAGMA locking_mode = EXCLUSIVE;
PRAGMA journal_mode = WAL;
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS images (place INTEGER PRIMARY KEY, height, width, masks TEXT, seeds BLOB);
CREATE TABLE IF NOT EXISTS skipped (name TEXT PRIMARY KEY, reason TEXT);
"""
_UNLOCKED = "vfs=unix-none" if os.name == "posix" else ""


@dataclass(frozen=True)
class ImageRecord:
    """The masks of one image.

    Attributes:
        index: position of the image in the run's sorted list.
        height, width: size of the image in pixels, as it was read.
        masks: one dict per mask with counts, area, bbox and score, best first.
        seeds: float16 [len(masks), D]; empty for predictions.
    """

    index: int
    height: int
    width: int
    masks: list[dict[str, Any]]
    seeds: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float16))


class RecordFile:
    """The records that this process writes; if it is killed, whole batches remain.

    Raises:
        OSError: the database is damaged, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = _connect(path, _UNLOCKED)
        try:
            with self._transaction() as database:
                database.executescript(_SETUP)
        except BaseException:
            self.close()
            raise

    def places(self) -> set[int]:
        """Positions of the images that have a record."""
        with self._transaction() as database:
            return {place for (place,) in database.execute("SELECT place FROM images")}

    def append(self, records: Sequence[ImageRecord]) -> None:
        """Add the records of one batch: all of them or, after a crash, none."""
        rows = [(r.index, r.height, r.width, json.dumps(r.masks), r.seeds.tobytes()) for r in records]
        with self._transaction() as database:
            database.executemany("INSERT INTO images VALUES (?, ?, ?, ?, ?)", rows)

    def finish(self, path: Path, skipped: Mapping[str, str] | None = None) -> None:
        """Add the skipped images, name -> reason, and make this the finished file `path` (atomic)."""
        with self._transaction() as database:
            database.executemany("INSERT OR REPLACE INTO skipped VALUES (?, ?)", (skipped or {}).items())
        with self._transaction() as database:
            database.execute("PRAGMA journal_mode = DELETE")  # everything into the one file, or an error
        self.close()
        os.replace(self._path, path)

    def close(self) -> None:
        """Close the file; it can be opened again."""
        self._connection.close()

    def _transaction(self) -> contextlib.AbstractContextManager[sqlite3.Connection]:
        return _transaction(self._connection, self._path)


class FinishedRecords(contextlib.AbstractContextManager):
    """Reads finished files, which no process writes any more, as one; an image in several counts once."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._open = contextlib.ExitStack()
        self._files = []
        for path in paths:
            connection = _connect(path, "immutable=1")
            self._open.callback(connection.close)
            self._files.append((connection, path))

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def in_order(self, *columns: str) -> Iterator[tuple]:
        """(position, *columns) of every image with a record, by position."""
        query = f"SELECT {', '.join(('place', *columns))} FROM images ORDER BY place"
        rows = [_rows(file, query) for file in self._files]
        last = None
        for row in heapq.merge(*rows, key=itemgetter(0)):
            if row[0] != last:
                yield row
            last = row[0]

    def skipped(self) -> dict[str, str]:
        """Name of each skipped image -> reason."""
        return {name: why for file in self._files for name, why in _rows(file, "SELECT * FROM skipped")}


def _rows(file: tuple[sqlite3.Connection, Path], query: str) -> Iterator[tuple]:
    with _transaction(*file) as database:
        yield from database.execute(query)


def _connect(path: Path, parameters: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?{parameters}", uri=True)


@contextlib.contextmanager
def _transaction(connection: sqlite3.Connection, path: Path) -> Iterator[sqlite3.Connection]:
    """One transaction; SQLite's errors (disk full, damaged file) become OSError."""
    try:
        with connection:
            yield connection
    except sqlite3.Error as error:
        raise OSError(f"{path}: {error}; make room, or delete this file to make its images again") from error
