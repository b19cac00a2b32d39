"""Commands with a time limit, and what came of them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# From asking a command to stop to making it.
GRACE = 8.0


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its exit status, None where it was stopped at its limit."""

    status: int | None
    seconds: float
    text: str


class Clock:
    """Time that has passed and that is left of a number of minutes."""

    def __init__(self, minutes: float, now: Callable[[], float] = time.monotonic) -> None:
        self.now = now
        self.begin = now()
        self.total = 60 * minutes

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self.now() - self.begin

    @property
    def left(self) -> float:
        """Seconds left, not below 0."""
        return max(0.0, self.total - self.elapsed)

    def say(self, text: str) -> None:
        """A line of progress."""
        print(f"[{self.elapsed:4.0f} s, {self.left:4.0f} s left] {text}", flush=True)


def _stop(process: subprocess.Popen) -> None:
    """Interrupt a command and all it started, then kill what is left."""
    for how, wait in ((signal.SIGINT, GRACE), (signal.SIGKILL, GRACE)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, how)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def run(
    command: list[str],
    *,
    limit: float,
    log: Path,
    cwd: Path,
    env: dict[str, str],
    show: Callable[[str], bool] = lambda line: True,
) -> Outcome:
    """Run a command in a process group of its own, its output in `log` and, as it comes, on the terminal.

    What runs longer than `limit` seconds is stopped with all it started; `show` says which lines to print.
    """
    begin = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out, log.open("r", errors="replace") as tail:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, cwd=cwd, env=env, start_new_session=True
        )
        stopped = False
        rest = ""
        try:
            while True:
                ended = process.poll() is not None
                rest += tail.read()
                *lines, rest = rest.split("\n")
                for line in filter(show, lines):
                    print(f"    {line}", flush=True)
                if ended:
                    break
                if time.monotonic() - begin > limit:
                    stopped = True
                    _stop(process)
                else:
                    time.sleep(0.1)
        finally:
            # Also what the command left running, and when this process is interrupted itself.
            if process.poll() is None:
                _stop(process)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    status = None if stopped else process.returncode
    return Outcome(status, time.monotonic() - begin, log.read_text(errors="replace"))
