"""How far jobs are: bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

from sp_fast.jobs import Job
from sp_fast.progress import clock

LINE_SECONDS = 10.0


class JobsView:
    """Shows jobs while they run; a context manager, called with the jobs and the seconds left.

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
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
        )
        self._tasks: dict[Job, TaskID] = {}
        self._told: set[Job] = set()

    def __enter__(self) -> JobsView:
        """Starts drawing."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Leaves the last state standing."""
        if self._live is not None:
            self._live.stop()

    def __call__(self, jobs: Sequence[Job], left: float | None) -> None:
        """Shows the present state."""
        elapsed = time.monotonic() - self._start
        if self._live is not None:
            self._draw(jobs, elapsed, left)
            return
        for job in jobs:
            if job.finished and job not in self._told:
                self._told.add(job)
                kept = " (kept from an earlier run)" if job.kept else ""
                self.console.print(
                    f"[{clock(elapsed)}] {job.name}: done{kept}", markup=False, highlight=False
                )
        running = [job for job in jobs if job.running]
        if running and elapsed - self._last >= LINE_SECONDS:
            self._last = elapsed
            states = "; ".join(f"{job.name} {job.step}/{job.steps}{_loss(job)}" for job in running)
            line = f"[{clock(elapsed)}] {states}; {_left(left)}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _draw(self, jobs: Sequence[Job], elapsed: float, left: float | None) -> None:
        assert self._live is not None
        for job in jobs:
            if job not in self._tasks:
                self._tasks[job] = self._bars.add_task(job.name, total=job.steps, note="")
            note = "done" if job.finished else _loss(job).strip(" ,") if job.running else "waiting"
            note = "kept from an earlier run" if job.kept else note
            self._bars.update(self._tasks[job], completed=job.step, note=note)
        table = Table.grid()
        table.add_row(self._bars)
        table.add_row(f"{clock(elapsed)} gone, {_left(left)}")
        self._live.update(table)


def _left(seconds: float | None) -> str:
    return "time left not known yet" if seconds is None else f"about {clock(seconds)} left"


def _loss(job: Job) -> str:
    return "" if job.loss is None else f", loss {job.loss:.2f}"
