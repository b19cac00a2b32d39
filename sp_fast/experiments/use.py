"""The model to use of an experiment, and the commands to use it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from sp_fast.experiments.experiment import PRETRAIN
from sp_fast.experiments.plan import Plan
from sp_fast.experiments.worker import place

MODEL = "model.pth"


class Use(NamedTuple):
    """A sentence about the model, and the commands that use it."""

    model: str
    commands: list[str]


def use(plan: Plan, results: dict[str, Any]) -> Use | None:
    """How to use the model in the experiment's folder, or else that of the best run; None without any."""
    metric, heading = next(iter(results["metrics"].items()))
    analyses = {name for row in plan.experiment.rows for name in row.analyses}
    values = _last_values(results, metric, analyses)
    if not values:
        return None
    best = max(values, key=lambda key: values[key])
    run = plan.of(*best)
    assert run is not None
    if (plan.out / MODEL).is_file():
        about, model = "The model of this experiment.", plan.out / MODEL
    else:
        model = run.folder
        about = f"The model with the highest {heading} of all runs, {values[best]:.1f}: {run.label}."
    commands = [["predict", near(str(model)), "photos", "--out", "found"]]
    if run.spec["val_images"]:
        images, annotations = (near(str(place(run, f"val_{name}"))) for name in ("images", "annotations"))
        commands += [["evaluate", near(str(model)), "--images", images, "--annotations", annotations]]
    commands += [["export", near(str(model)), "--format", "onnx", "--out", "model.onnx"]]
    return Use(about, [shlex.join(["sp-fast", *words]) for words in commands])


def _last_values(
    results: dict[str, Any], metric: str, analyses: set[str]
) -> dict[tuple[str, str, int], float]:
    """The last value of a metric by row, training and seed; after fine-tuning, if any row has that."""
    values = {
        (name, training, int(seed)): value
        for name, row in results["rows"].items()
        for training, trained in row["trainings"].items()
        if training not in analyses and metric in trained["summary"]
        for seed, value in trained["summary"][metric]["values"].items()
    }
    return {key: value for key, value in values.items() if key[1] != PRETRAIN} or values


def near(path: str) -> str:
    """A path inside the current folder relative to it, anything else as it is."""
    here = Path.cwd()
    inside = os.path.isabs(path) and Path(path).is_relative_to(here)
    return str(Path(path).relative_to(here)) if inside else path
