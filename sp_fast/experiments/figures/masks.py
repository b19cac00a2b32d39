"""Masks over images: proposals, and predictions beside the annotated objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from sp_fast.evaluation.mask_grid import ImageMasks, choose_images, mask_grid, masks_of, read_masks
from sp_fast.experiments.pictures import sampled
from sp_fast.experiments.plan import PROPOSALS, Plan, Run
from sp_fast.experiments.worker import MASKS, PREDICTED, place

PROPOSAL_IMAGES, PREDICTION_IMAGES = 12, 8


def proposals(plan: Plan, results: dict[str, Any]) -> Figure | None:
    """Draws the proposals of the first run that has some; None without such a run or without the images."""
    run = _first(plan, PROPOSALS, MASKS)
    if run is None:
        return None
    found = masks_of(sampled(run.folder / MASKS, PROPOSAL_IMAGES), MASKS)
    return _drawn([found], place(run, "images"), PROPOSAL_IMAGES)


def predictions(plan: Plan, results: dict[str, Any]) -> Figure | None:
    """Draws annotated objects, and the first fine-tuned model's predictions with scores >= 0.3; else None."""
    names = [name for row in plan.experiment.rows for name in row.finetune]
    run = _first(plan, names[0], PREDICTED) if names else None
    if run is None or not place(run, "val_annotations").is_file():
        return None
    truth = place(run, "val_annotations")
    annotated = read_masks(truth, label="annotated")
    found = read_masks(run.folder / PREDICTED, truth, label="predicted", min_score=0.3)
    return _drawn([annotated, found], place(run, "val_images"), PREDICTION_IMAGES)


def _first(plan: Plan, part: str, file: str) -> Run | None:
    """The first finished run of a part, of any row and seed, that has a file."""
    runs = [plan.of(row.name, part, seed) for row in plan.experiment.rows for seed in plan.seeds]
    return next((run for run in runs if run and run.finished and (run.folder / file).is_file()), None)


def _drawn(files: list[ImageMasks], folder: Path, count: int) -> Figure | None:
    names = choose_images(files, count)
    # An experiment can be moved to a machine without its images.
    return mask_grid(files, folder, names) if all((folder / name).is_file() for name in names) else None
