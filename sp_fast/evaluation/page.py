"""An evaluation as a table in the terminal and as an HTML page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sp_fast.evaluation.per_image import pictures
from sp_fast.evaluation.report import Report
from sp_fast.pages import render

HEADINGS = {
    **{"mAP": "AP", "mAP_50": "AP50", "mAP_75": "AP75", "mAP_s": "APs", "mAP_m": "APm", "mAP_l": "APl"},
    **{"AR@1": "AR1", "AR@10": "AR10", "AR@100": "AR100", "AR_s": "ARs", "AR_m": "ARm", "AR_l": "ARl"},
}
SINGULAR = {"masks": "mask", "boxes": "box"}
OF_A_CLASS = ("mAP", "mAP_50", "mAP_75", "AR@100")
WORST = 12  # images on the page


def print_report(report: Report, console: Console) -> None:
    """Prints the values of masks and boxes, and of each class; fits into 80 columns."""
    overall = _table("", HEADINGS.values())
    for kind, values in report.overall.items():
        overall.add_row(kind, *(percent(values[name]) for name in HEADINGS))
    console.print(overall)
    if len(report.per_class) > 1:
        columns = [f"{SINGULAR[kind]} {HEADINGS[name]}" for kind, name in _of_a_class(report)]
        classes = _table("class", ["objects", *columns])
        for label, one in report.per_class.items():
            cells = (percent(one[kind][name]) for kind, name in _of_a_class(report))
            classes.add_row(Text(label), str(one["objects"]), *cells)
        console.print(classes)
    for note in (*protocol(report), *report.notes):
        console.print(note, highlight=False, soft_wrap=True, markup=False)


def page(report: Report, title: str, images: Path | None, command: str, details: Mapping[str, str]) -> str:
    """The evaluation as one HTML page; with `images`, their folder, also the worst ones as pictures."""
    worst = [one for one in report.per_image if one.f1 < 1][:WORST]
    drawn = [(one, pictures(one, images)) for one in worst] if images and "masks" in report.overall else []
    return render(
        "evaluation.html",
        {"percent": percent},
        report=report,
        title=title,
        headings=HEADINGS,
        columns=_of_a_class(report),
        singular=SINGULAR,
        protocol=" ".join(protocol(report)),
        curves=[Markup(_curves(kind, values)) for kind, values in report.precision.items()],
        worst=drawn,
        details=details,
        command=command,
    )


def protocol(report: Report) -> tuple[str, ...]:
    """How classes were ignored, if they were."""
    if report.class_agnostic == "no_categories":
        return ("Class-agnostic: classes ignored (useCats off); each copy of a mask counts.",)
    if report.class_agnostic:
        return ("Class-agnostic: all classes merged into one; copies of a mask count once.",)
    return ()


def percent(value: float) -> str:
    """A value of 0 to 1 in percent; a dash for NaN."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def _of_a_class(report: Report) -> list[tuple[str, str]]:
    both = len(report.overall) > 1
    return [
        (kind, name)
        for kind in report.overall
        for name in (OF_A_CLASS if kind == "masks" or not both else ("mAP",))
    ]


def _table(first: str, headings: Any) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column(first, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _curves(kind: str, precision: np.ndarray) -> str:
    from sp_fast.plots import COLOURS, INK, inline_svg

    def draw(axes: Any) -> None:
        lines = {"IoU 0.5": precision[0], "IoU 0.75": precision[5], "IoU 0.5 to 0.95": precision.mean(axis=0)}
        for colour, (label, values) in zip(COLOURS[1:], lines.items(), strict=False):
            axes.plot(np.linspace(0, 1, 101), values, color=colour, label=label)
        axes.set(title=kind.capitalize(), xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(axis="y", color=INK, alpha=0.12)
        axes.legend(frameon=False)

    return inline_svg(draw, kind)
