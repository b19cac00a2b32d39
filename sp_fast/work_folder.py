"""The work folder of a training: one run at a time, and none that overwrites another unasked."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from sp_fast.locks import try_lock

LOCK = ".lock"
# The last one names the newest checkpoint of mmengine's own hook.
RESULTS = ("latest.pth", "best.pth", "pretrained.pth", "last_checkpoint")


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
        found = [name for name in RESULTS if (folder / name).exists()]
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
        for name in RESULTS:
            (folder / name).unlink(missing_ok=True)
