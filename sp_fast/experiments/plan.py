"""The runs that an experiment takes; what is equal between rows is one run."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sp_fast.experiments.experiment import PRETRAIN, Experiment, Proposals, Row, Training

RUNS = "runs"
RESULT = "result.json"


@dataclass(frozen=True)
class Run:
    """One process: it makes data or proposals, or trains.

    Attributes:
        key: name of its folder; runs that do the same have the same.
        kind: `data`, `proposals` or `train`.
        label: what it is, for progress.
        folder: of all that it writes; it holds `result.json` once the run is finished.
        spec: what it does, in plain values; paths may hold `{data}` and `{seed}`.
        seed: random seed.
        needs: `data`, `proposals` and `pretrain` -> key of the run that must be finished before.
        steps: how many there are, if that is known before.
    """

    key: str
    kind: str
    label: str
    folder: Path
    spec: Mapping[str, Any]
    seed: int
    needs: Mapping[str, str]
    steps: int | None = None

    @property
    def finished(self) -> bool:
        """Whether its result is there."""
        return (self.folder / RESULT).is_file()

    def result(self) -> dict[str, Any]:
        """What it gave."""
        return json.loads((self.folder / RESULT).read_text())


class Plan:
    """All runs of an experiment.

    Args:
        experiment: the whole of it; its rows and seeds name the folders.
        out: folder of everything that is made.
        seeds: random seeds.
    """

    def __init__(self, experiment: Experiment, out: Path, seeds: Sequence[int]) -> None:
        self.experiment, self.out, self.seeds = experiment, out, list(seeds)
        self.runs: dict[str, Run] = {}
        self._of_row: dict[tuple[str, str, int], str] = {}
        self._proposals: dict[tuple[str, int], str] = {}
        # Seed by seed, so that few seeds are complete before many are begun.
        for seed in self.seeds:
            for row in experiment.rows:
                self._add_row(row, seed)

    def of(self, row: str, training: str, seed: int) -> Run | None:
        """The run of one training of a row, or None where the row has no such training."""
        key = self._of_row.get((row, training, seed))
        return None if key is None else self.runs[key]

    def proposals_of(self, row: str, seed: int) -> Run | None:
        """The run that makes the row's pseudo labels, or None."""
        key = self._proposals.get((row, seed))
        return None if key is None else self.runs[key]

    def needed(self, rows: Sequence[str], seeds: Sequence[int]) -> list[Run]:
        """The runs of some rows and seeds and all that these start from, each after what it needs."""
        wanted: dict[str, Run] = {}

        def add(key: str) -> None:
            for before in self.runs[key].needs.values():
                add(before)
            wanted.setdefault(key, self.runs[key])

        for (row, _, seed), key in self._of_row.items():
            if row in rows and seed in seeds:
                add(key)
        return list(wanted.values())

    def _add_row(self, row: Row, seed: int) -> None:
        data = self._add_data(seed)
        before = dict(data)
        if row.proposals is not None and row.pretrain is not None:
            before["proposals"] = self._add_proposals(row, row.proposals, data, seed)
            self._proposals[row.name, seed] = before["proposals"]
        needs = dict(data)
        if row.pretrain is not None:
            needs[PRETRAIN] = self._add_training(row, PRETRAIN, row.pretrain, before, seed)
        for name, training in row.finetune.items():
            self._add_training(row, name, training, needs, seed)

    def _add_data(self, seed: int) -> dict[str, str]:
        prepare = self.experiment.prepare
        if prepare is None:
            return {}
        seed = seed if self.experiment.data_per_seed else 0
        spec = {"prepare": _described(prepare)}
        name = f"data-seed{seed}" if self.experiment.data_per_seed else "data"
        return {"data": self._add("data", name, "data", spec, seed, {})}

    def _add_proposals(self, row: Row, proposals: Proposals, data: Mapping[str, str], seed: int) -> str:
        spec = dataclasses.asdict(proposals)
        # Without data of its own a seed has nothing that would change its proposals.
        seed = seed if self.experiment.data_per_seed else 0
        label = f"pseudo labels of {row.label}"
        return self._add("proposals", f"proposals-{row.name}", label, spec, seed, data)

    def _add_training(
        self, row: Row, name: str, training: Training, needs: Mapping[str, str], seed: int
    ) -> str:
        spec = dataclasses.asdict(training)
        label = "pre-train" if name == PRETRAIN else f"fine-tune on {name}"
        key = self._add(
            "train", f"{row.name}-{name}", f"{row.label}: {label}", spec, seed, needs, training.steps
        )
        self._of_row[row.name, name, seed] = key
        return key

    def _add(
        self,
        kind: str,
        name: str,
        label: str,
        spec: Mapping[str, Any],
        seed: int,
        needs: Mapping[str, str],
        steps: int | None = None,
    ) -> str:
        spec = json.loads(json.dumps(spec))
        same = json.dumps([kind, spec, seed, dict(needs)], sort_keys=True)
        digest = hashlib.sha256(same.encode()).hexdigest()[:8]
        for key in self.runs:
            if key.endswith(f"-{digest}"):
                return key
        slug = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-")
        if kind == "train":
            slug += f"-seed{seed}"
        many = len(self.seeds) > 1 and kind != "data"
        key = f"{slug}-{digest}"
        label = f"seed {seed}, {label}" if many else label
        self.runs[key] = Run(key, kind, label, self.out / RUNS / key, spec, seed, dict(needs), steps)
        return key


def _described(prepare: Any) -> list[str]:
    """A function and the arguments that are bound to it."""
    if isinstance(prepare, functools.partial):
        bound = [*map(repr, prepare.args), *(f"{k}={v!r}" for k, v in sorted(prepare.keywords.items()))]
        return [*_described(prepare.func), *bound]
    return [f"{prepare.__module__}.{prepare.__qualname__}".removeprefix("<run_path>.")]


def by_cost(runs: Sequence[Run]) -> Iterator[Run]:
    """Runs with the longest ways first: a run with much behind it is not left to the end."""
    length: dict[str, float] = {}
    for run in reversed(runs):  # what a run needs stands before it
        length.setdefault(run.key, 0.0)
        length[run.key] += run.steps or 1
        for before in run.needs.values():
            length[before] = max(length.get(before, 0.0), length[run.key])
    yield from sorted(runs, key=lambda run: -length[run.key])
