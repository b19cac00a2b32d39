"""Draws the figures of an experiment for its report."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from sp_fast.drawing import data_uri
from sp_fast.experiments.figures import Figure
from sp_fast.experiments.plan import Plan
from sp_fast.experiments.table import title
from sp_fast.plots import head, save_png


class DrawnFigure(NamedTuple):
    """A written figure: its file in the experiment's folder, its caption, and its data URI."""

    file: str
    caption: str
    uri: str


def write_figures(plan: Plan, results: dict[str, Any]) -> list[DrawnFigure]:
    """Writes each figure that has data as PNG; figure and caption say if runs are missing."""
    finished, runs = results["finished"], results["runs"]
    note = "" if finished == runs else f" Not complete: {finished} of {runs} runs."
    found = []
    for figure in plan.experiment.figures:
        path = plan.out / f"{figure.name}.png"
        if save_png(partial(_drawn, figure, plan, results), path):
            with Image.open(path) as image:
                uri = data_uri(np.asarray(image.convert("RGB")))
            found.append(DrawnFigure(path.name, figure.caption + note, uri))
    return found


def _drawn(figure: Figure, plan: Plan, results: dict[str, Any]) -> Any:
    drawn = figure.draw(plan, results)
    if drawn is not None and results["finished"] < results["runs"]:
        head(drawn, title(results))
    return drawn
