"""Targets as lists of steps that share a time limit; each step runs commands with a limit of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.render import read, write

ROOT = Path(__file__).resolve().parents[2]
# Seconds between interrupting a command and killing it, within its limit.
GRACE = 10.0
# Minimum time for starting a step, in seconds.
LEAST = 15.0
PASSED, FAILED, OUT_OF_TIME, LEFT_OUT = "passed", "failed", "out of time", "left out"


@dataclass(frozen=True)
class Place:
    """Folder of packages and logs, path of the JSON report, the device, and whether this is a dry run."""

    work: Path
    results: Path
    device: dict[str, Any]
    dry: bool = False

    def run(self, name: str, command: list[str], limit: float, **env: str) -> tuple[int | None, str]:
        """Run a command; return its exit status, None if the limit stopped it, and its output.

        The output is also printed and logged. A command that begins with an option is run by Python. Every
        process that the command started is killed at its end.
        """
        paths = [str(self.work), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        process = subprocess.Popen(
            [sys.executable, *command] if command[0].startswith("-") else command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", **env},
            start_new_session=True,
        )
        stopped = threading.Event()

        def signal_all(number: int) -> None:
            stopped.set()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)

        interrupt = threading.Timer(limit - min(GRACE, limit / 4), signal_all, [signal.SIGINT])
        kill = threading.Timer(limit, signal_all, [signal.SIGKILL])
        lines: list[str] = []
        try:
            interrupt.start(), kill.start()
            with (self.work / f"{name}.log").open("w") as log:
                for line in process.stdout or ():
                    lines.append(line)
                    log.write(line)
                    print(f"    {line}", end="", flush=True)
            status = process.wait()
        finally:
            interrupt.cancel(), kill.cancel()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        return None if stopped.is_set() else status, "".join(lines)


@dataclass(frozen=True)
class Step:
    """A part of a target: `work(place, seconds)` returns a verdict and a note.

    The remaining time is divided in proportion to `share`. If a `vital` step fails, later steps are left out.
    """

    name: str
    work: Callable[[Place, float], tuple[str, str]]
    share: float = 1.0
    vital: bool = False


def carry_out(steps: list[Step], seconds: float, place: Place, report: dict[str, Any], target: str) -> None:
    """Run the steps in order, and write the report after each."""
    end, obstacle = time.monotonic() + seconds, ""
    write(report, place.results)
    for number, step in enumerate(steps):
        begin = time.monotonic()
        limit = (end - begin) * step.share / sum(later.share for later in steps[number:])
        if obstacle:
            verdict, note = LEFT_OUT, obstacle
        elif limit < LEAST:
            verdict, note = OUT_OF_TIME, "not begun"
        else:
            print(f"[{end - begin:.0f} s left] {step.name}, {limit:.0f} s at most", flush=True)
            verdict, note = step.work(place, limit)
        if step.vital and verdict in (FAILED, OUT_OF_TIME):
            obstacle = f"{step.name}: {verdict}"
        print(f"{step.name}: {verdict}{': ' + note if note else ''}", flush=True)
        # A step may have written to the report itself.
        report |= read(place.results)
        seconds_taken = round(time.monotonic() - begin, 1)
        report[target]["steps"][step.name] = {"verdict": verdict, "note": note, "seconds": seconds_taken}
        write(report, place.results)
