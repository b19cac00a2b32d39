"""Curves: the first metric by epoch of fine-tuning."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from sp_fast.experiments.curves import Panel, curves_of, grid
from sp_fast.experiments.experiment import PRETRAIN
from sp_fast.experiments.plan import Plan
from sp_fast.experiments.table import trainings


def draw(plan: Plan, results: dict[str, Any]) -> Figure | None:
    """Draws a panel for each fine-tuning, with a curve for each row; None while there is no curve.

    Curves are means over the finished seeds, bands their range. Where the number of steps per epoch is not
    known, they are drawn by step.
    """
    found = [_panel(results, name) for name in trainings(results) if name != PRETRAIN]
    found = [panel for panel in found if panel.curves]
    return grid(found, results, across=2) if found else None


def _panel(results: dict[str, Any], training: str) -> Panel:
    metric, heading = next(iter(results["metrics"].items()))
    curves = curves_of(results, training, "curves", metric)
    trained = {curve.row: results["rows"][curve.row]["trainings"][training] for curve in curves}
    lengths = {row: one.get("steps_per_epoch") for row, one in trained.items()}
    if not all(lengths.values()):
        return Panel(training, heading, curves)
    by_epoch = [one._replace(steps=[step / lengths[one.row] for step in one.steps]) for one in curves]
    return Panel(training, heading, by_epoch, "epoch")
