"""Progress of a loop with its speed and the time left: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class RunProgress(AbstractContextManager):
    """Context manager to call with (done, total); shows progress, speed and time left.

    `what` is counted, such as "images"; a log gets a line `every` so many seconds. A `transient` bar
    leaves nothing on the terminal. Nothing is shown in the first `after` seconds.
    """

    def __init__(
        self,
        what: str,
        console: Console | None = None,
        every: float = 10.0,
        *,
        transient: bool = False,
        after: float = 0.0,
    ) -> None:
        self._what = what
        self._after = after
        self._console = console or Console(stderr=True)
        self._every = every
        self._started: tuple[float, int] | None = None
        self._next = -float("inf")
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
            TextColumn("{task.fields[note]}"),
            console=self._console,
            transient=transient,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task(what, total=None, speed="", note="")

    def __enter__(self) -> RunProgress:
        if not self._after:
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Shows that `done` of `total` are done, and a note; the first call tells where it starts."""
        now = time.monotonic()
        start, before = self._started = self._started or (now, done)
        if now - start < self._after:
            return
        self._bar.start()
        rate = (done - before) / (now - start) if now > start else 0.0
        speed = f"{rate:.1f} {self._what}/s" if rate else ""
        self._bar.update(self._task, completed=done, total=total, speed=speed, note=note)
        finished = done == total and self._next < float("inf")
        if not self._bar.disable or not (finished or now >= self._next):
            return
        self._next = float("inf") if done == total else now + self._every
        left = f", {clock((total - done) / rate)} left" if rate and done < total else ""
        speed = f", {speed}" if speed else ""
        note = f", {note}" if note else ""
        line = f"{done}/{total} {self._what}{speed}{left}{note}"
        self._console.print(line, highlight=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
