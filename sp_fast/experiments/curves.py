"""Learning curves: what is measured over steps, and the loss of pre-training."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from sp_fast.experiments.experiment import PRETRAIN
from sp_fast.experiments.table import in_order, training_heading
from sp_fast.files import replacing

INK = "#010203"  # becomes the colour of the page's text, light or dark
# Okabe and Ito's, told apart by the colour-blind; grey for their yellow, which is too faint on white.
COLOURS = ("#8a8f98", "#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9", "#cc79a7", INK)
_DASHES = ("-", (0, (4, 1.5)), (0, (1, 1.5)))
_FONT = {
    "font.size": 9.5,
    "svg.fonttype": "none",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


@dataclass(frozen=True)
class Curve:
    """One row's values: mean, lowest and highest over seeds at each step."""

    row: str
    steps: list[int]
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Panel:
    """A pair of axes and the curves in it."""

    title: str
    ylabel: str
    curves: list[Curve]


def style(position: int) -> tuple[str, Any]:
    """Colour and dashes of the row at this position in the experiment."""
    return COLOURS[position % len(COLOURS)], _DASHES[position // len(COLOURS) % len(_DASHES)]


def panels(results: dict[str, Any]) -> list[Panel]:
    """The first metric while fine-tuning and pre-training, then the loss of pre-training.

    Only those that have a curve, which takes two steps.

    Args:
        results: as :func:`sp_fast.experiments.results.collect` gives them.
    """
    metric, heading = next(iter(results["metrics"].items()))
    trainings = in_order(name for row in results["rows"].values() for name in row["trainings"])
    found = [
        Panel(f"{training_heading(name)}: {heading}", heading, _curves(results, name, "curves", metric))
        for name in trainings
    ]
    found.append(Panel("Pre-training: loss", "sum of losses", _curves(results, PRETRAIN, "losses", "loss")))
    return [panel for panel in found if panel.curves]


def _curves(results: dict[str, Any], training: str, part: str, value: str) -> list[Curve]:
    found = []
    for name, row in results["rows"].items():
        runs = row["trainings"].get(training, {part: {}})[part].values()
        by_step = [{one["step"]: one[value] for one in run if one.get(value) is not None} for run in runs]
        by_step = [run for run in by_step if run]
        steps = sorted(set.intersection(*map(set, by_step))) if by_step else []
        if len(steps) > 1:
            values = np.array([[run[step] for step in steps] for run in by_step])
            found.append(Curve(name, steps, values.mean(0), values.min(0), values.max(0)))
    return found


def svg(panel: Panel, rows: Sequence[str]) -> str:
    """One panel as an SVG element that takes its text's colour and font from the page; without a legend.

    Args:
        panel: what to draw.
        rows: names of all rows of the experiment, in order; they choose the colours.
    """
    # Ids differ between the panels of one page and are the same each time.
    with matplotlib.rc_context({**_FONT, "svg.hashsalt": panel.title}):
        figure: Any = Figure(figsize=(5.2, 3.3), layout="constrained")
        FigureCanvasSVG(figure)
        figure.patch.set_alpha(0)
        _draw(figure.add_subplot(), panel, rows)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    # The page says how large it is; ids of groups, which nothing refers to, would be the same in each panel.
    text = re.sub(r' (?:width|height)="[0-9.]+pt"', "", text)
    return re.sub(r'<g id="[^"]*">', "<g>", text)


def write_png(results: dict[str, Any], path: Path) -> None:
    """Writes all panels and a legend as one picture."""
    found, rows = panels(results), list(results["rows"])
    columns = {0: 1, 1: 1, 2: 2, 4: 2}.get(len(found), 3)
    lines = math.ceil(len(found) / columns) or 1
    with matplotlib.rc_context(_FONT):
        figure: Any = Figure(
            figsize=(5.2 * columns, 3.5 * lines), dpi=130, facecolor="white", layout="constrained"
        )
        FigureCanvasAgg(figure)
        handles = {}
        for number, panel in enumerate(found):
            drawn = _draw(figure.add_subplot(lines, columns, number + 1), panel, rows)
            handles.update(drawn)
        if not found:
            figure.text(0.5, 0.5, "No curve yet.", ha="center")
        labels = {name: results["rows"][name]["label"] for name in rows if name in handles}
        if labels:
            wide = max(1, min(len(labels), int(5.2 * columns / 3.2)))
            figure.legend(
                [handles[name] for name in labels],
                list(labels.values()),
                loc="outside lower left",
                ncols=wide,
                frameon=False,
            )
        with replacing(path) as file:
            figure.savefig(file, format="png", metadata={"Software": None})


def _draw(axes: Any, panel: Panel, rows: Sequence[str]) -> dict[str, Any]:
    """Draws the curves; returns the line of each row."""
    handles = {}
    for curve in panel.curves:
        colour, dashes = style(rows.index(curve.row))
        dots = "o" if len(curve.steps) <= 12 else None
        handles[curve.row] = axes.plot(
            curve.steps, curve.mean, color=colour, linestyle=dashes, marker=dots, markersize=4, linewidth=1.8
        )[0]
        if (curve.low < curve.high).any():
            axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.13, linewidth=0)
    axes.set(title=panel.title, xlabel="step", ylabel=panel.ylabel)
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
    return handles
