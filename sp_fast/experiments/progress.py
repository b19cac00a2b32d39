"""How far runs are: bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from sp_fast.experiments.scheduler import Task
from sp_fast.progress import clock

LINE_SECONDS = 10.0
_NOTES = {"waiting": "waiting", "elsewhere": "in another call", "done": "done", "kept": "kept"}


class TasksView:
    """Shows tasks while they run; a context manager, called with the tasks and the seconds left.

    Args:
        console: bars that are redrawn when it is a terminal, otherwise a line every 10 seconds.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._start = time.monotonic()
        self._last = -LINE_SECONDS
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._rows: dict[str, TaskID] = {}
        self._told: set[str] = set()

    def __enter__(self) -> TasksView:
        """Starts drawing."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leaves the last state on the screen."""
        if self._live is not None:
            self._live.stop()

    def __call__(self, tasks: Sequence[Task], left: float | None) -> None:
        """Shows the present state."""
        elapsed = time.monotonic() - self._start
        if self._live is not None:
            self._draw(tasks, elapsed, left)
            return
        for task in tasks:
            if task.finished and task.run.key not in self._told:
                self._told.add(task.run.key)
                kept = " (kept from an earlier call)" if task.state == "kept" else ""
                self._print(f"[{clock(elapsed)}] {task.run.label}: done{kept}")
        running = [task for task in tasks if task.state == "running"]
        if running and elapsed - self._last >= LINE_SECONDS:
            self._last = elapsed
            states = "; ".join(f"{task.run.label} {_note(task)}" for task in running)
            self._print(f"[{clock(elapsed)}] {states}; {_left(left)}")

    def _print(self, line: str) -> None:
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _draw(self, tasks: Sequence[Task], elapsed: float, left: float | None) -> None:
        assert self._live is not None
        # Of many runs those at work, the next and how many are done: what fits a screen.
        open_tasks = [task for task in tasks if not task.finished]
        shown = {task.run.key: task for task in open_tasks[: max(self.console.height - 6, 4)]}
        for key in [key for key in self._rows if key not in shown]:
            self._bars.remove_task(self._rows.pop(key))
        for key, task in shown.items():
            if key not in self._rows:
                self._rows[key] = self._bars.add_task(task.run.label, total=None, note="")
            total = task.steps or task.run.steps or None
            self._bars.update(self._rows[key], completed=task.step, total=total, note=_note(task))
        table = Table.grid()
        table.add_row(self._bars)
        done = len(tasks) - len(open_tasks)
        table.add_row(f"{done} of {len(tasks)} runs done, {clock(elapsed)} elapsed, {_left(left)}")
        self._live.update(table)


def _note(task: Task) -> str:
    if task.state != "running":
        return _NOTES[task.state]
    steps = f"{task.step}/{task.steps}" if task.steps else str(task.step or "starting")
    return steps if task.loss is None else f"{steps}, loss {task.loss:.2f}"


def _left(seconds: float | None) -> str:
    return "time left not known yet" if seconds is None else f"about {clock(seconds)} left"
