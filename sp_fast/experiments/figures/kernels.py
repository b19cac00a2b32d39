"""Shows where the kernels of each row's model look: their masks, averaged over images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sp_fast.data.images import list_images, spread
from sp_fast.evaluation.kernel_maps import kernel_figure, mean_kernel_maps
from sp_fast.experiments.plan import Plan
from sp_fast.experiments.worker import PROGRESS
from sp_fast.files import replacing, write_json
from sp_fast.inference.load import load

ANALYSIS = "kernels"
MAPS = "kernels.npy"


def kernel_maps(
    folder: Path,
    trained: Path | None,
    *,
    images: str,
    checkpoint: str | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Averages the kernels' masks of a model and writes them to `kernels.npy`; an `Analysis` calls it.

    If it is interrupted, the next call continues.

    Args:
        folder: folder of the run.
        trained: folder of the training whose last checkpoint is the model, or None.
        images: folder of images.
        checkpoint: the model, if there is no training.
        limit: number of images, evenly spread; None for all.

    Returns:
        The numbers of images and of kernels.
    """
    if trained is None and checkpoint is None:
        raise ValueError("checkpoint: expected a file, or a training before the analysis, got neither")
    model: Any = load(trained / "latest.pth" if trained else str(checkpoint))
    paths = list_images(images)
    paths = spread(paths, limit or len(paths))
    last = 0.0

    def report(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > 1 or done == total:
            last = time.monotonic()
            write_json({"done": done, "total": total}, folder / PROGRESS)

    partial = folder / "partial.npz"
    maps = mean_kernel_maps(model, paths, partial=partial, progress=report)
    with replacing(folder / MAPS) as file:
        np.save(file, maps)
    partial.unlink(missing_ok=True)
    return {"images": len(paths), "kernels": len(maps)}


def draw(plan: Plan, results: dict[str, Any]) -> Figure | None:
    """Draws the maps of all rows, for the first seed that each has finished; None while there are none."""
    maps = {}
    for row in plan.experiment.rows:
        runs = [plan.of(row.name, ANALYSIS, seed) for seed in plan.seeds]
        done = next((run for run in runs if run and run.finished), None)
        if done is not None:
            maps[row.label] = np.load(done.folder / MAPS)
    return kernel_figure(maps) if maps else None
