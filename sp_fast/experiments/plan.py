"""The runs that an experiment takes; what rows share is one run."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sp_fast.experiments.experiment import PRETRAIN, Experiment, Row

PROPOSALS = "proposals"
RUNS = "runs"
RESULT = "result.json"


@dataclass(frozen=True)
class Run:
    """One process: it makes data or proposals, or trains."""

    key: str  # name of the folder; ends with a hash of what the run does
    kind: str  # `data`, `proposals`, `train` or `analysis`
    label: str
    folder: Path  # holds `result.json` once the run is finished
    spec: Mapping[str, Any]  # what it does; paths may hold `{data}` and `{seed}`
    seed: int
    needs: dict[str, str]  # `data`, `proposals`, `pretrain` or `trained` -> key of the run to finish first

    @property
    def steps(self) -> int | None:
        """Training steps, if known before the start."""
        return self.spec.get("steps")

    @property
    def finished(self) -> bool:
        """Whether its result is there."""
        return (self.folder / RESULT).is_file()

    def result(self) -> dict[str, Any]:
        """Reads its result."""
        return json.loads((self.folder / RESULT).read_text())


class Plan:
    """All runs of an experiment by key, each after those that it needs, in the folder `out`.

    `parts` maps a row, `proposals` or the name of a training or analysis, and a seed to the key of the run.
    """

    def __init__(self, experiment: Experiment, out: Path, seeds: Sequence[int]) -> None:
        self.experiment, self.out, self.seeds = experiment, out, list(seeds)
        self.runs: dict[str, Run] = {}
        self._there = {_digest(path.name): path.name for path in sorted((out / RUNS).glob("*-*"))}
        self.parts: dict[tuple[str, str, int], str] = {}
        # Seed by seed, so that few seeds are complete before many are begun.
        for seed in self.seeds:
            for row in experiment.rows:
                self._add_row(row, seed)

    def of(self, row: str, part: str, seed: int) -> Run | None:
        """The run of a row's training, analysis or `proposals`; None if the row has none."""
        key = self.parts.get((row, part, seed))
        return None if key is None else self.runs[key]

    def needed(self, rows: Sequence[str], seeds: Sequence[int]) -> list[Run]:
        """The runs of some rows and seeds and all that these start from, each after what it needs."""
        wanted: dict[str, Run] = {}

        def add(key: str) -> None:
            for before in self.runs[key].needs.values():
                add(before)
            wanted.setdefault(key, self.runs[key])

        for (row, _, seed), key in self.parts.items():
            if row in rows and seed in seeds:
                add(key)
        return list(wanted.values())

    def _add_row(self, row: Row, seed: int) -> None:
        # Without data per seed, data and proposals do not depend on the seed.
        data_seed = seed if self.experiment.data_per_seed else 0
        needs: dict[str, str] = {}
        if self.experiment.prepare is not None:
            name = f"data-seed{seed}" if self.experiment.data_per_seed else "data"
            spec = {"prepare": _described(self.experiment.prepare)}
            needs["data"] = self._add("data", name, "data", spec, data_seed, {})
        data, before = dict(needs), dict(needs)
        if row.proposals is not None and row.pretrain is not None:
            name, label = f"proposals-{row.name}", f"{row.label}: pseudo labels"
            key = self._add(PROPOSALS, name, label, dataclasses.asdict(row.proposals), data_seed, needs)
            before[PROPOSALS] = self.parts[row.name, PROPOSALS, seed] = key
        for part, training in row.trainings.items():
            first = part == PRETRAIN
            name = f"{row.name}-{part}-seed{seed}"
            label = f"{row.label}: {'pre-train' if first else f'fine-tune on {part}'}"
            spec = dataclasses.asdict(training)
            key = self._add("train", name, label, spec, seed, before if first else needs)
            self.parts[row.name, part, seed] = key
            if first:
                needs[PRETRAIN] = self._add_analysis(row, row.start, seed, data, seed) if row.start else key
        for part, analysis in row.analyses.items():
            if part != row.start:
                # Without a training, nothing in it depends on the seed.
                self._add_analysis(row, part, seed, data, seed if analysis.after else data_seed)

    def _add_analysis(self, row: Row, part: str, seed: int, data: dict[str, str], own_seed: int) -> str:
        after = row.analyses[part].after
        needs = {**data, **({"trained": self.parts[row.name, after, seed]} if after else {})}
        name, label = f"{row.name}-{part}-seed{own_seed}", f"{row.label}: {part}"
        key = self._add("analysis", name, label, dataclasses.asdict(row.analyses[part]), own_seed, needs)
        self.parts[row.name, part, seed] = key
        return key

    def _add(
        self, kind: str, name: str, label: str, spec: Mapping[str, Any], seed: int, needs: dict[str, str]
    ) -> str:
        """Adds the run, unless one that does the same is there; returns the key."""
        spec = json.loads(json.dumps(spec))
        before = {part: _digest(key) for part, key in needs.items()}
        same = json.dumps([kind, spec, seed, before], sort_keys=True)
        digest = hashlib.sha256(same.encode()).hexdigest()[:8]
        for key in self.runs:
            if _digest(key) == digest:
                return key
        # Another experiment on these runs may have named it after a row of its own.
        key = self._there.get(digest, re.sub(r"[^A-Za-z0-9.]+", "-", f"{name}-{digest}"))
        if len(self.seeds) > 1 and kind != "data":
            label = f"seed {seed}, {label}"
        self.runs[key] = Run(key, kind, label, self.out / RUNS / key, spec, seed, dict(needs))
        return key


def _digest(key: str) -> str:
    return key.rpartition("-")[2]


def _described(prepare: Any) -> list[str]:
    """A function and the arguments that are bound to it."""
    if isinstance(prepare, functools.partial):
        bound = [*map(repr, prepare.args), *(f"{k}={v!r}" for k, v in sorted(prepare.keywords.items()))]
        return [*_described(prepare.func), *bound]
    return [f"{prepare.__module__}.{prepare.__qualname__}".removeprefix("<run_path>.")]


def by_cost(runs: Sequence[Run]) -> list[Run]:
    """Sorts runs by the steps of the longest chain that begins with them, longest first."""
    length: dict[str, int] = {}
    for run in reversed(runs):  # what a run needs stands before it
        length[run.key] = length.get(run.key, 0) + (run.steps or 1)
        for before in run.needs.values():
            length[before] = max(length.get(before, 0), length[run.key])
    return sorted(runs, key=lambda run: -length[run.key])
