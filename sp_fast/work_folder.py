"""The work folder of a training: one run at a time, and none that overwrites another unasked."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from sp_fast.locks import try_lock

LOCK = ".lock"
CHECKPOINT = "latest.pth"
_POINTER = "last_checkpoint"  # names the newest checkpoint of mmengine's own hook
RESULTS = (CHECKPOINT, "best.pth", "pretrained.pth", _POINTER)
_OF_MMENGINE = ("epoch_[0-9]*.pth", "iter_[0-9]*.pth")


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint in a work folder to resume from, written by this package or by mmengine's hook.

    mmengine's pointer decides as long as what it names is there, in a moved folder too.
    """
    if (folder / CHECKPOINT).is_file():
        return folder / CHECKPOINT
    pointer = folder / _POINTER
    if pointer.is_file():
        named = Path(pointer.read_text().strip())
        for path in (folder / named.name, named):
            if path.is_file():
                return path
    return max(_of_mmengine(folder), key=lambda path: path.stat().st_mtime, default=None)


def _of_mmengine(folder: Path) -> list[Path]:
    return sorted(path for pattern in _OF_MMENGINE for path in folder.glob(pattern))


@contextlib.contextmanager
def claimed(folder: Path, *, resume: bool, overwrite: bool) -> Iterator[None]:
    """Holds a work folder, created if needed, and sweeps what killed runs left half-written.

    Of several processes on one machine, the first holds it for all.

    Raises:
        ValueError: another run holds it; or it has results, and neither `resume` nor `overwrite` is given.
    """
    if int(os.environ.get("RANK", 0)):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    handle = try_lock(folder / LOCK)
    if handle is None:
        raise ValueError(
            f"--work-dir: another run is at work in {folder}; wait for it, or give another folder"
        )
    try:
        found = [path.name for path in _results(folder)]
        if found and not (resume or overwrite):
            raise ValueError(
                f"--work-dir: {folder} has {', '.join(found)} of an earlier run. --resume goes on with it, "
                "--overwrite replaces it; or give another folder"
            )
        for name in RESULTS:
            for partial in folder.glob(f".{name}.*.partial"):
                partial.unlink()
        yield
    finally:
        os.close(handle)


def remove_results(folder: Path) -> None:
    """Removes the results of an earlier run, which a new one might not write again."""
    if not int(os.environ.get("RANK", 0)):
        for path in _results(folder):
            path.unlink()


def _results(folder: Path) -> list[Path]:
    return [*(folder / name for name in RESULTS if (folder / name).exists()), *_of_mmengine(folder)]
