"""Progress of the runs: bars on a terminal, lines now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sp_fast.experiments.scheduler import Show, Task
from sp_fast.experiments.time_left import TimeLeft
from sp_fast.progress import clock

LINE_SECONDS = 10.0


@contextmanager
def progress(console: Console) -> Iterator[Show]:
    """Gives a function to call with the tasks and the time left; a log gets a line every 10 seconds."""
    start = time.monotonic()
    if not console.is_terminal:
        yield _lines(console, start)
        return
    with Live(console=console, refresh_per_second=4) as live:

        def show(tasks: Sequence[Task], left: TimeLeft) -> None:
            live.update(_bars(tasks, time.monotonic() - start, left, console.height))

        yield show


def _lines(console: Console, start: float) -> Show:
    printed: set[str] = set()
    last = -LINE_SECONDS

    def write(text: str) -> None:
        line = f"[{clock(time.monotonic() - start)}] {text}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show(tasks: Sequence[Task], left: TimeLeft) -> None:
        nonlocal last
        for task in tasks:
            if task.finished and task.run.key not in printed:
                printed.add(task.run.key)
                kept = " (kept from an earlier call)" if task.state == "kept" else ""
                write(f"{task.run.label}: done{kept}")
        running = [f"{task.run.label} {_note(task)}" for task in tasks if task.state == "running"]
        elapsed = time.monotonic() - start
        if running and elapsed - last >= LINE_SECONDS:
            last = elapsed
            write(f"{'; '.join(running)}; {left}")

    return show


def _bars(tasks: Sequence[Task], elapsed: float, left: TimeLeft, height: int) -> Table:
    """The runs that are not done, as many as fit the screen, and a summary."""
    unfinished = [task for task in tasks if not task.finished]
    bars = Table.grid(padding=(0, 1))
    for task in unfinished[: max(height - 6, 4)]:
        total = task.steps or task.run.steps or None
        bar = ProgressBar(total or 100, task.step if total else 0, width=20)
        bars.add_row(Text(task.run.label), bar, Text(_note(task)))
    table = Table.grid()
    table.add_row(bars)
    done = len(tasks) - len(unfinished)
    table.add_row(f"{done} of {len(tasks)} runs done, {clock(elapsed)} elapsed, {left}")
    return table


def _note(task: Task) -> str:
    if task.state != "running":
        return "in another call" if task.state == "elsewhere" else task.state
    steps = f"{task.step}/{task.steps}" if task.steps else str(task.step or "starting")
    return steps if task.loss is None else f"{steps}, loss {task.loss:.2f}"
