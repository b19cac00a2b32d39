"""Learning curves: the first metric over steps, and the loss of pre-training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from sp_fast.experiments.experiment import PRETRAIN
from sp_fast.experiments.table import title, training_heading, trainings
from sp_fast.plots import COLOURS, INK, head, inline_svg, save_png

DASHES = ("solid", "dashed", "dotted")  # names in both matplotlib and CSS


class Curve(NamedTuple):
    """Mean, lowest and highest value of a row over its seeds at each step, or epoch."""

    row: str
    steps: list[float]
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Panel(NamedTuple):
    """A pair of axes and the curves in it."""

    title: str
    ylabel: str
    curves: list[Curve]
    xlabel: str = "step"


def style(position: int) -> tuple[str, str]:
    """Colour and dashes of the row at this position in the experiment."""
    return COLOURS[position % len(COLOURS)], DASHES[position // len(COLOURS) % len(DASHES)]


def panels(results: dict[str, Any]) -> list[Panel]:
    """The first metric during each training, then the loss of pre-training; only panels with a curve."""
    metric, heading = next(iter(results["metrics"].items()))
    found = [
        Panel(f"{training_heading(name)}: {heading}", heading, curves_of(results, name, "curves", metric))
        for name in trainings(results)
    ]
    found.append(Panel("Pre-training: loss", "sum of losses", curves_of(results, PRETRAIN, "losses", "loss")))
    return [panel for panel in found if panel.curves]


def curves_of(results: dict[str, Any], training: str, part: str, value: str) -> list[Curve]:
    """The curves of all rows that have values of a training at two steps or more.

    `part` is the key of the values, `curves` or `losses`; `value` is the name of one value.
    """
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


def svg(panel: Panel, rows: Mapping[str, str]) -> str:
    """One panel as an inline SVG element without a legend; text takes its colour and font from the page.

    `rows` are names and labels of all rows, whose order chooses the colours.
    """
    return inline_svg(lambda axes: _draw(axes, panel, rows), panel.title)


def write_png(results: dict[str, Any], path: Path) -> None:
    """Writes all panels and a legend as one picture."""

    def draw() -> Figure:
        figure = grid(panels(results), results)
        if results["finished"] < results["runs"]:
            head(figure, title(results))
        return figure

    save_png(draw, path)


def grid(found: list[Panel], results: dict[str, Any], across: int = 3) -> Figure:
    """The panels, at most `across` side by side, above one legend."""
    rows = {name: row["label"] for name, row in results["rows"].items()}
    columns = max(min(len(found), across), 1)
    lines = max(math.ceil(len(found) / columns), 1)
    figure = Figure(figsize=(5.2 * columns, 3.5 * lines), layout="constrained")
    legend: dict[str, Any] = {}
    for number, panel in enumerate(found, 1):
        axes = figure.add_subplot(lines, columns, number)
        _draw(axes, panel, rows)
        handles, labels = axes.get_legend_handles_labels()
        legend |= dict(zip(labels, handles, strict=True))
    if found:
        place = {"loc": "outside lower left", "ncols": columns, "frameon": False}
        figure.legend(legend.values(), legend.keys(), **place)
    else:
        figure.text(0.5, 0.5, "No curve yet.", ha="center")
    return figure


def _draw(axes: Any, panel: Panel, rows: Mapping[str, str]) -> None:
    for curve in panel.curves:
        colour, dashes = style(list(rows).index(curve.row))
        marker = "." if len(curve.steps) <= 12 else None
        axes.plot(
            curve.steps, curve.mean, color=colour, linestyle=dashes, marker=marker, label=rows[curve.row]
        )
        axes.fill_between(curve.steps, curve.low, curve.high, color=colour, alpha=0.13, linewidth=0)
    axes.set(title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel)
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", color=INK, alpha=0.12)
