"""Figures of experiments, which the report draws from finished runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """A figure of the report.

    Attributes:
        name: name of its file, without `.png`.
        caption: what it shows.
        draw: called with the `Plan` and the results of `collect`; returns a matplotlib figure, or None while
            there is nothing to draw.
    """

    name: str
    caption: str
    draw: Callable[[Any, dict[str, Any]], Any]
