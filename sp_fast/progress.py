"""Progress of a run, with the time left: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class RunProgress:
    """A callback for (done, total) that shows progress, speed and time left.

    Args:
        what: what is counted, such as "images".
        console: console to print to; standard error by default.
        every: seconds between lines if the console is not a terminal.
    """

    def __init__(self, what: str, console: Console | None = None, every: float = 10.0) -> None:
        self._what = what
        self._console = console or Console(stderr=True)
        self._every = every
        self._started: tuple[float, int] | None = None
        self._printed = -float("inf")
        self._bar: Progress | None = None
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[speed]}"),
                TimeRemainingColumn(elapsed_when_finished=True),
                console=self._console,
            )
            self._task = self._bar.add_task(what, total=None, speed="")

    def __enter__(self) -> RunProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """Report that `done` of `total` are done; the first call sets what was done before the start."""
        now = time.monotonic()
        if self._started is None:
            self._started = now, done
        start, before = self._started
        rate = (done - before) / (now - start) if now > start else 0.0
        speed = f"{rate:.1f} {self._what}/s" if rate else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total, speed=speed)
            return
        if now - self._printed < self._every and done < total:
            return
        if done == total and self._printed == float("inf"):
            return
        self._printed = float("inf") if done == total else now
        left = f", {clock((total - done) / rate)} left" if rate and done < total else ""
        speed = f", {speed}" if speed else ""
        self._console.print(f"{done}/{total} {self._what}{speed}{left}", highlight=False, soft_wrap=True)


def clock(seconds: float) -> str:
    """Seconds as m:ss, or h:mm:ss from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
