"""Writes the report of an experiment, and prints its status."""

from __future__ import annotations

import shlex
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sp_fast.experiments import results
from sp_fast.experiments.curves import write_png
from sp_fast.experiments.experiment import PRETRAIN
from sp_fast.experiments.figures.drawn import write_figures
from sp_fast.experiments.inputs import missing_inputs
from sp_fast.experiments.page import page
from sp_fast.experiments.plan import PROPOSALS, RUNS, Plan
from sp_fast.experiments.scheduler import is_running
from sp_fast.experiments.store import Source, option
from sp_fast.experiments.table import markdown, print_table
from sp_fast.experiments.time_left import Paces
from sp_fast.experiments.use import near, use
from sp_fast.files import write_text
from sp_fast.progress import clock

PAGE, TABLE, CURVES = "report.html", "report.md", "curves.png"
_NAMES = {PROPOSALS: "pseudo labels", PRETRAIN: "pre-training"}


def write_report(plan: Plan, source: Source, console: Console) -> None:
    """Writes results.json, report.md, curves.png, figures and report.html, and prints the table."""
    found = results.write(plan)
    command = command_line(plan, source)
    write_png(found, plan.out / CURVES)
    figures = write_figures(plan, found)
    pictures = "".join(f"![{one.caption}]({one.file})\n\n{one.caption}\n\n" for one in figures)
    table = markdown(found, plan.experiment.notes, plan.experiment.settings)
    times = results.read_times(plan)
    mixed = _mixed_versions(times)
    text = f"{table}\n{pictures}![Learning curves]({CURVES})\n\n```\n{command}\n```\n"
    write_text(text + (f"\n{mixed}\n" if mixed else ""), plan.out / TABLE)
    write_text(page(plan, found, times, command, use(plan, found), figures), plan.out / PAGE)
    print_table(found, console)
    if mixed:
        console.print(Text(mixed))
    files = [("Page", PAGE), ("Table", TABLE), ("Curves", CURVES), ("Numbers", results.RESULTS)]
    for what, name in [*files, *(("Figure", one.file) for one in figures)]:
        console.print(Text(f"{what + ':':8} {plan.out / name}"), soft_wrap=True)


def _mixed_versions(times: dict[str, dict[str, Any]]) -> str:
    """A warning if the runs were made by several versions, whose defaults may differ; else nothing."""
    found = {(entry.get("sp_fast", "?"), entry.get("revision")) for entry in times.values()}
    if len(found) < 2:
        return ""
    named = sorted(f"{version} at commit {commit}" if commit else version for version, commit in found)
    return (
        f"These runs were made by several versions of sp_fast: {', '.join(named)}. Their defaults may "
        f"differ; delete the folders of old runs in {RUNS}/ to run them again."
    )


def command_line(plan: Plan, source: Source) -> str:
    """The command that continues the experiment, or runs it again."""
    if plan.experiment.command:
        return plan.experiment.command
    words = ["sp-fast", "experiment", "run", near(source.name), "--out", str(plan.out)]
    words += ["--seeds", ",".join(map(str, plan.seeds))]
    for name, value in source.arguments.items():
        words += option(name, near(value) if isinstance(value, str) else value)
    return shlex.join(words)


def print_status(plan: Plan, console: Console) -> None:
    """Prints the number of runs by state, the time left, the state of each run and row, and missing files."""
    states = {
        key: "done" if run.finished else "running" if is_running(run) else "missing"
        for key, run in plan.runs.items()
    }
    counts = [f"{list(states.values()).count(state)} {state}" for state in ("done", "running", "missing")]
    console.print(Text(f"{len(states)} runs: {', '.join(counts)}", style="bold"))
    if any(state != "done" for state in states.values()):
        console.print(Text(_time_left(plan, states)))
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column, width in (("row", None), ("run", None), ("seeds", 34)):
        table.add_column(column, overflow="fold", max_width=width)
    for row in plan.experiment.rows:
        label = row.label
        for part in (PROPOSALS, *row.trainings, *row.analyses):
            seeds = defaultdict(list)
            for seed in plan.seeds:
                if key := plan.parts.get((row.name, part, seed)):
                    seeds[states[key]].append(str(seed))
            if seeds:
                text = "; ".join(f"{', '.join(which)} {state}" for state, which in seeds.items())
                table.add_row(Text(label), Text(_NAMES.get(part, part)), Text(text))
                label = ""
    console.print(table)
    console.print(Text("\n".join(_row_states(plan, states))))
    missing = missing_inputs(plan, list(plan.runs.values()))
    if missing:
        console.print(Text(f"Missing files: {', '.join(missing)}"), soft_wrap=True)


def _row_states(plan: Plan, states: dict[str, str]) -> Iterator[str]:
    """A line per state: a row is running if one of its runs is, else missing if one of its runs is."""
    found: dict[str, list[str]] = {"done": [], "running": [], "missing": []}
    for row in plan.experiment.rows:
        own = {states[run.key] for run in plan.needed([row.name], plan.seeds)}
        found[next(state for state in ("running", "missing", "done") if state in own)].append(row.name)
    for state, names in found.items():
        if names:
            yield f"Rows {state}: {', '.join(names)}"


def _time_left(plan: Plan, states: dict[str, str]) -> str:
    """Estimates from the finished runs how long the others take, one after the other."""
    kinds = {key: run.kind for key, run in plan.runs.items()}
    kinds |= {key: _NAMES.get(part, part) for (_, part, _), key in plan.parts.items()}
    paces = Paces()
    for key, entry in results.read_times(plan).items():
        paces.add(plan.runs[key], entry["seconds"], plan.runs[key].steps)
    left = {
        key: paces.seconds(plan.runs[key], plan.runs[key].steps)
        for key, state in states.items()
        if state != "done"
    }
    known = [seconds for seconds in left.values() if seconds is not None]
    unknown = dict.fromkeys(kinds[key] for key, seconds in left.items() if seconds is None)
    if unknown:
        least = f"at least {clock(sum(known))}; " if known else ""
        return f"Time left: {least}not known yet for {', '.join(unknown)}"
    return f"Time left: about {clock(sum(known))} of computing, less with several runs at once"
