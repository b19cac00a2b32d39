"""Estimates how long runs take from similar runs, and words the time left."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from statistics import mean
from typing import NamedTuple

from sp_fast.experiments.plan import Run
from sp_fast.progress import clock


class TimeLeft(NamedTuple):
    """An estimate for the unfinished runs."""

    seconds: float  # of those whose time is known
    unknown: int = 0  # number of the others

    def __str__(self) -> str:
        if self.unknown and not self.seconds:
            return "time left not known yet"
        return f"{'at least' if self.unknown else 'about'} {clock(self.seconds)} left"


class Paces:
    """Measured times of runs, from which those of similar runs are estimated."""

    def __init__(self) -> None:
        self._whole: dict[tuple, list[float]] = defaultdict(list)
        self._per_step: dict[str | None, list[float]] = defaultdict(list)

    def add(self, run: Run, seconds: float, steps: int | None = None) -> None:
        """Adds the time that a run takes as a whole; `steps` are those of a training, if known."""
        for key in _like(run):
            self._whole[key].append(seconds)
        if run.kind == "train" and steps:
            for config in (run.spec["config"], None):
                self._per_step[config].append(seconds / steps)

    def seconds(self, run: Run, steps: int | None = None) -> float | None:
        """Time that a run is expected to take as a whole; None while there is no similar run."""
        for key in _like(run):
            if key in self._whole:
                return mean(self._whole[key])
        if run.kind == "train" and steps:
            for config in (run.spec["config"], None):
                if config in self._per_step:
                    return steps * mean(self._per_step[config])
        return None


def _like(run: Run) -> Iterator[tuple]:
    """Keys that runs of about the same length share, the most specific first."""
    yield run.kind, json.dumps(run.spec)
    if run.kind == "train":
        yield tuple(run.spec[name] for name in ("config", "steps", "epochs", "images", "annotations"))
    elif run.kind == "analysis":
        yield (run.spec["function"],)
