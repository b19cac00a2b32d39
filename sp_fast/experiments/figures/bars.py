"""Bars: the first metric of each row after each training, beside the paper's value."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Patch

from sp_fast.experiments.curves import style
from sp_fast.experiments.experiment import PRETRAIN
from sp_fast.experiments.plan import Plan
from sp_fast.experiments.table import trainings
from sp_fast.plots import INK, WIDTH


def draw(plan: Plan, results: dict[str, Any]) -> Figure | None:
    """Draws a group of bars for each fine-tuning, with a bar for each row; None while no row has a value.

    Error bars are the standard deviation over the seeds. A hatched bar to the right of a row's bar is the
    paper's value, if it has one. A missing run leaves a gap.
    """
    metric, heading = next(iter(results["metrics"].items()))
    groups = [name for name in trainings(results) if name != PRETRAIN]
    rows = results["rows"]
    values = {(row, group): _values(rows[row], group, metric) for row in rows for group in groups}
    if not any(ours for ours, _ in values.values()):
        return None
    has_paper = any(paper is not None for _, paper in values.values())
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.add_subplot()
    width = 0.8 / len(rows)  # room for a row's bar or two
    bar = width / 2 if has_paper else width
    for k, row in enumerate(rows):
        colour, _ = style(k)
        for place, group in enumerate(groups):
            ours, paper = values[row, group]
            left = place - 0.4 + width * k
            if ours:
                _bar(axes, left, bar, ours["mean"], ours["spread"], color=colour)
            if paper is not None:
                _bar(axes, left + bar, bar, paper, None, fill=False, edgecolor=colour, hatch="////")
    axes.set_xticks(range(len(groups)), groups)
    axes.tick_params(axis="x", length=0)
    axes.set(ylabel=heading, xlim=(-0.5, len(groups) - 0.5))
    axes.margins(y=0.1)
    axes.grid(axis="y", color=INK, alpha=0.12)
    axes.set_axisbelow(True)
    keys = [Patch(color=style(k)[0], label=row["label"]) for k, row in enumerate(rows.values())]
    if has_paper:
        keys.append(Patch(fill=False, edgecolor=INK, hatch="////", label="the paper's value"))
    figure.legend(handles=keys, loc="outside lower left", ncols=4, frameon=False)
    return figure


def _values(row: dict[str, Any], group: str, metric: str) -> tuple[dict[str, Any] | None, float | None]:
    """Mean and spread of a row after a training, and the paper's value."""
    training = row["trainings"].get(group, {"summary": {}, "expected": {}})
    return training["summary"].get(metric), training["expected"].get(metric)


def _bar(axes: Any, left: float, width: float, height: float, spread: float | None, **look: Any) -> None:
    axes.bar(left, height, 0.92 * width, align="edge", linewidth=1, yerr=spread, ecolor=INK, **look)
    axes.annotate(
        f"{height:.{1 if height >= 10 else 2}f}",
        (left + 0.46 * width, height + (spread or 0)),
        (0, 2),
        textcoords="offset points",
        ha="center",
        fontsize=8,
    )
