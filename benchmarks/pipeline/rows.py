"""The rows of the table, and the options of a run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Sizes:
    """How much is measured; a table compares only runs of the same sizes."""

    image: tuple[int, int] = (800, 1333)  # of a training image, height and width
    batch: int = 12
    masks: int = 20  # per image, of the loader and of K-Net's losses
    batches: int = 2  # of the loader
    steps: int = 2  # of the slowest training, besides one that warms up; the others do more
    proposed: int = 8  # images; the first half warms up
    repeats: int = 2  # of the losses and the attention


@dataclass(frozen=True)
class Row:
    """One measured value.

    Attributes:
        group: what it is part of.
        name: what was measured, with its unit, in at most 33 characters.
        value: the median.
        floor: what bounds it, in the same unit and measured in the same run; None: nothing does.
        floor_is: what the floor is.
        goal: the most that it may be, in the same unit, if there is a goal.
        times: how many times as small as before it should be, if that is the goal.
    """

    group: str
    name: str
    value: float
    floor: float | None = None
    floor_is: str = ""
    goal: float | None = None
    times: float | None = None

    @property
    def key(self) -> str:
        """Its name in JSON."""
        return f"{self.group}: {self.name}"


def medians(runs: Sequence[Sequence[Row]]) -> list[Row]:
    """The rows of several runs of a part, with the medians of their values, floors and goals."""

    def median(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return statistics.median(known) if known else None

    return [
        replace(
            same[0],
            value=statistics.median(row.value for row in same),
            floor=median([row.floor for row in same]),
            goal=median([row.goal for row in same]),
        )
        for same in zip(*runs, strict=True)
    ]


@dataclass(frozen=True)
class Task:
    """What a part measures with: its sizes, and a folder of its own to write to.

    `data` is the folder of SP_FAST_DATA; None: images are made up.
    """

    sizes: Sizes
    folder: Path
    data: Path | None = None

    @property
    def photographs(self) -> Path | None:
        """Folder of images to take pixels from."""
        return self.data / "coco_mini" / "train" if self.data else None
