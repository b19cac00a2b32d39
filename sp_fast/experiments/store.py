"""Where an experiment is defined, and what its folder says about it."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sp_fast.experiments.experiment import Experiment
from sp_fast.files import write_json
from sp_fast.locks import turn_in

STAMP = "experiment.json"
# Name -> module and name of what makes it.
BUILT_IN = {
    "demo": ("sp_fast.experiments.demo", "experiment"),
    "fit": ("sp_fast.experiments.fit", "experiment"),
    **{name: ("sp_fast.experiments.paper.tables", name) for name in ("table4", "table5", "table7")},
}


@dataclasses.dataclass(frozen=True)
class Source:
    """Where an experiment is defined: its name or file, and arguments such as `data_root` and `quick`."""

    name: str
    arguments: dict[str, Any] = dataclasses.field(default_factory=dict)

    def load(self) -> Experiment:
        """The experiment.

        Raises:
            ValueError: unknown name, file without an experiment, or wrong or missing arguments.
        """
        if self.name in BUILT_IN:
            module, attribute = BUILT_IN[self.name]
            defined = getattr(importlib.import_module(module), attribute)
        elif Path(self.name).is_file():
            defined = runpy.run_path(self.name).get("experiment")
        else:
            known = ", ".join(BUILT_IN)
            raise ValueError(f"EXPERIMENT: expected {known} or a Python file, got {self.name!r}")
        experiment = self._call(defined) if callable(defined) else defined
        if not isinstance(experiment, Experiment):
            raise ValueError(
                f"{self.name}: expected `experiment`, an sp_fast.experiments.Experiment or a function that "
                f"makes one, got {type(experiment).__name__}"
            )
        return experiment

    def _call(self, function: Any) -> Any:
        known = inspect.signature(function).parameters
        taken = ", ".join(known) or "no arguments"
        wrong = {name: f"takes {taken}" for name in self.arguments if name not in known}
        required = [name for name, one in known.items() if one.default is one.empty]
        wrong |= {name: "needs it" for name in required if name not in self.arguments}
        for name, problem in wrong.items():
            given = " ".join(option(name)).removesuffix(" ...")
            raise ValueError(f"{given}: the experiment {self.name} {problem}")
        return function(**self.arguments)


def option(name: str, value: Any = "...") -> list[str]:
    """The words that give an argument on the command line."""
    text = value if isinstance(value, str) else json.dumps(value)
    options = {"quick": ["--quick"], "data_root": ["--data-root", text]}
    return options.get(name, ["--set", f"{name}={text}"])


def remember(out: Path, source: Source, seeds: Sequence[int]) -> list[int]:
    """Stores which experiment `out` holds; returns all seeds that were requested in it so far, sorted."""
    with turn_in(out):
        before = json.loads((out / STAMP).read_text())["seeds"] if (out / STAMP).is_file() else []
        asked = sorted({*before, *seeds})
        write_json({"source": dataclasses.asdict(source), "seeds": asked}, out / STAMP)
    return asked


def recall(out: Path) -> tuple[Source, list[int]]:
    """Where the experiment in a folder is defined, and the seeds that were requested.

    Raises:
        FileNotFoundError: the folder holds no experiment.
    """
    path = out / STAMP
    if not path.is_file():
        raise FileNotFoundError(
            f"DIR: expected the --out folder of `sp-fast experiment run`, got {out}, which has no {STAMP}"
        )
    stamp = json.loads(path.read_text())
    return Source(**stamp["source"]), stamp["seeds"]
