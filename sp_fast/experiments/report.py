"""What is written and printed of an experiment's results, and of how far it is."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sp_fast.experiments import results
from sp_fast.experiments.curves import write_png
from sp_fast.experiments.experiment import PRETRAIN
from sp_fast.experiments.page import page
from sp_fast.experiments.plan import Plan, Run
from sp_fast.experiments.scheduler import is_running
from sp_fast.experiments.store import Source
from sp_fast.experiments.table import markdown, print_table
from sp_fast.files import write_text
from sp_fast.progress import clock

PAGE, TABLE, CURVES = "report.html", "report.md", "curves.png"
PROPOSALS = "proposals"
_NAMES = {PROPOSALS: "pseudo labels", PRETRAIN: "pre-training"}


def write_report(plan: Plan, source: Source, console: Console) -> None:
    """Writes results.json, report.md, curves.png and report.html, and prints the table."""
    found = results.write(plan)
    command = command_line(plan, source)
    write_png(found, plan.out / CURVES)
    table = markdown(plan.experiment, found)
    write_text(f"{table}\n![Learning curves]({CURVES})\n\n```\n{command}\n```\n", plan.out / TABLE)
    write_text(page(plan, found, results.read_times(plan), command), plan.out / PAGE)
    print_table(plan.experiment, found, console)
    for what, name in (("Page", PAGE), ("Table", TABLE), ("Curves", CURVES), ("Numbers", results.RESULTS)):
        console.print(Text(f"{what + ':':8} {plan.out / name}"), soft_wrap=True)


def command_line(plan: Plan, source: Source) -> str:
    """The command that goes on with the experiment, or makes it again."""
    words = ["sp-fast", "experiment", "run", _near(source.name), "--out", str(plan.out)]
    words += ["--seeds", ",".join(map(str, plan.seeds))]
    for name, value in source.arguments.items():
        words.append("--" + name.replace("_", "-"))
        words += [] if value is True else [_near(str(value))]
    return shlex.join(words)


def _near(path: str) -> str:
    """A path inside the current folder as seen from there, anything else as it is."""
    here = Path.cwd()
    inside = os.path.isabs(path) and Path(path).is_relative_to(here)
    return str(Path(path).relative_to(here)) if inside else path


def print_status(plan: Plan, console: Console) -> None:
    """How many runs are done, running and missing, the time left, and the seeds of each row's trainings."""
    states = {run.key: _state(run) for run in plan.runs.values()}
    counts = [f"{list(states.values()).count(state)} {state}" for state in ("done", "running", "missing")]
    console.print(Text(f"{len(states)} runs: {', '.join(counts)}", style="bold"))
    if any(state != "done" for state in states.values()):
        console.print(Text(_time_left(plan, states)))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("row", overflow="fold")
    table.add_column("run", overflow="fold")
    table.add_column("seeds", overflow="fold", max_width=34)
    for row in plan.experiment.rows:
        label = row.label
        for name in (PROPOSALS, *row.trainings):
            runs = [(seed, _run(plan, row.name, name, seed)) for seed in plan.seeds]
            seeds: dict[str, list[str]] = {}
            for seed, run in runs:
                if run is not None:
                    seeds.setdefault(states[run.key], []).append(str(seed))
            if seeds:
                told = "; ".join(f"{', '.join(own)} {state}" for state, own in seeds.items())
                table.add_row(Text(label), Text(_NAMES.get(name, name)), Text(told))
                label = ""
    console.print(table)


def _run(plan: Plan, row: str, name: str, seed: int) -> Run | None:
    return plan.proposals_of(row, seed) if name == PROPOSALS else plan.of(row, name, seed)


def _state(run: Run) -> str:
    return "done" if run.finished else "running" if is_running(run) else "missing"


def _time_left(plan: Plan, states: dict[str, str]) -> str:
    """Mean time of the finished runs of each kind times the runs of it that are not."""
    kinds = {key: _NAMES.get(run.kind, run.kind) for key, run in plan.runs.items()}
    for row in plan.experiment.rows:
        for name in row.trainings:
            for run in (plan.of(row.name, name, seed) for seed in plan.seeds):
                if run is not None:
                    kinds[run.key] = _NAMES.get(name, name)
    seconds: dict[str, list[float]] = {}
    for key, entry in results.read_times(plan).items():
        seconds.setdefault(kinds[key], []).append(entry["seconds"])
    left = [kinds[key] for key, state in states.items() if state != "done"]
    known = sum(sum(seconds[kind]) / len(seconds[kind]) for kind in left if kind in seconds)
    unknown = list(dict.fromkeys(kind for kind in left if kind not in seconds))
    if unknown:
        least = f"at least {clock(known)}; " if known else ""
        return f"Time left: {least}not known yet for {', '.join(unknown)}"
    return f"Time left: about {clock(known)} of computing, less with several runs at once"
