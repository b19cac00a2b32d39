"""Figures in the style of the pages: inline SVG elements and PNG files."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from sp_fast.files import replacing

WIDTH = 10.4  # of a figure that fills a page, in inches
LETTERS = 11  # of a title, per inch
INK = "#010203"  # replaced by the colour of the page's text, light or dark
# Okabe and Ito's colours for the colour-blind; grey for their yellow, which is too faint on white.
COLOURS = ("#8a8f98", "#0072b2", "#d55e00", "#009e73", "#e69f00", "#56b4e9", "#cc79a7")
STYLE = {
    "font.size": 9.5,
    "svg.fonttype": "none",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
}


def inline_svg(draw: Callable[[Any], None], name: str) -> str:
    """The axes that `draw` fills as an SVG element; text takes its colour and font from the page.

    `name` makes ids differ between the elements of one page, but not between calls.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(5.2, 3.3), layout="constrained")
        figure.patch.set_alpha(0)
        draw(figure.add_subplot())
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    # The page sets the size. Ids of groups are the same in each element, and nothing refers to them.
    text = re.sub(r' (?:width|height)="[0-9.]+pt"', "", text)
    return re.sub(r'<g id="[^"]*">', "<g>", text)


def shortened(text: str, longest: int) -> str:
    """The text, or its end after an ellipsis if it has more than `longest` characters."""
    return text if len(text) <= longest else f"…{text[1 - longest :]}"


def head(figure: Figure, text: str) -> None:
    """Writes a title above all axes, in as many lines as it needs."""
    figure.suptitle(textwrap.fill(text, int(LETTERS * figure.get_figwidth())))


def save_png(draw: Callable[[], Figure | None], path: Path) -> bool:
    """Writes the figure that `draw` makes in this style (atomic write); False if there is none."""
    with matplotlib.rc_context(STYLE):
        figure = draw()
        if figure is None:
            return False
        with replacing(path) as file:
            figure.savefig(file, format="png", dpi=130, metadata={"Software": None})
    return True
