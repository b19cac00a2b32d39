"""What is written and printed of an experiment's results."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from sp_fast.experiments import results
from sp_fast.experiments.plan import Plan
from sp_fast.experiments.scheduler import is_running
from sp_fast.experiments.store import Source


def write_report(plan: Plan, source: Source, console: Console) -> None:
    """Writes results.json and prints the table."""
    results.write(plan)
    console.print(f"Numbers: {plan.out / results.RESULTS}", highlight=False, soft_wrap=True)


def print_status(plan: Plan, console: Console) -> None:
    """One line per run: done, running or missing."""
    table = Table("run", "state")
    for run in plan.runs.values():
        state = "done" if run.finished else "running" if is_running(run) else "missing"
        table.add_row(run.label, state)
    console.print(table)
