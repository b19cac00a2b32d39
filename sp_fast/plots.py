"""Curves as inline SVG elements in the style of the pages."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib
from matplotlib.figure import Figure

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
