"""Shards of a run over several processes, and the folder that the processes share.

A process writes the records of its shard to a separate file in `<out>.partial/`, `3-of-8.sqlite`, which is
renamed to `3-of-8.done` once it is complete. Others read finished files only, so that nothing is damaged on a
network file system whose locks do not work.
"""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path
from typing import NamedTuple

from sp_fast.locks import LOCK, try_lock
from sp_fast.proposals.records import RecordFile


class Shard(NamedTuple):
    """Shard `number` of `total`, from 1."""

    number: int
    total: int

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"

    @property
    def stem(self) -> str:
        """Name of its files in the partial folder, without suffix."""
        return f"{self.number}-of-{self.total}"

    def part(self, images: int, block: int) -> list[int]:
        """Positions of its images: every `total`-th block of `block` images."""
        return [index for index in range(images) if index // block % self.total == self.number - 1]


WHOLE = Shard(1, 1)


def claim(partial: Path, shard: Shard, out: Path, *, restart: bool) -> int:
    """Lock a shard, and take over the records of interrupted runs in another number of shards.

    Args:
        partial: the folder that the processes share.
        shard: the shard to lock.
        out: final file, named in errors.
        restart: remove all records instead.

    Returns:
        A descriptor that holds the lock.

    Raises:
        BlockingIOError: another process works on this shard, or in another number of shards.
    """
    lock = _lock(partial, shard.stem, out)
    try:
        for file in partial.glob("*-of-*.sqlite"):
            if not file.stem.endswith(f"-of-{shard.total}"):
                other = _lock(partial, file.stem, out)
                try:
                    if not restart:
                        RecordFile(file).finish(partial / f"{uuid.uuid4().hex}.kept")
                finally:
                    os.close(other)
        if restart:
            _clear(partial)
    except BaseException:
        os.close(lock)
        raise
    return lock


def _lock(partial: Path, stem: str, out: Path) -> int:
    lock = try_lock(partial / f"{stem}.lock")
    if lock is None:
        part = "" if stem == WHOLE.stem else f" (shard {stem.replace('-of-', '/')})"
        raise BlockingIOError(
            f"out: another process is writing {out}{part}; wait for it, or choose another file"
        )
    return lock


def _clear(partial: Path) -> None:
    """Remove all records; the locks stay."""
    for file in partial.iterdir():
        if file.suffix != ".lock" and file.name != LOCK:
            file.unlink()


def finished(partial: Path) -> list[Path]:
    """The finished files."""
    return sorted([*partial.glob("*.done"), *partial.glob("*.kept")])


def missing(partial: Path, total: int) -> list[int]:
    """Numbers of the shards that are not finished."""
    return [
        number
        for number in range(1, total + 1)
        if not (partial / f"{Shard(number, total).stem}.done").exists()
    ]


def remove(partial: Path, shard: Shard) -> None:
    """Remove the records of one shard that is not finished, or the folder if it is the only one."""
    if shard.total == 1:
        # On NFS, a file that a waiting process has open leaves an entry until that is closed.
        shutil.rmtree(partial, ignore_errors=True)
    else:
        for file in partial.glob(f"{shard.stem}.*"):
            file.unlink()


def remove_unused(partial: Path) -> None:
    """Remove the folder if it was only made to wait for its lock."""
    if [file.name for file in partial.glob("*")] == [LOCK]:
        shutil.rmtree(partial, ignore_errors=True)
