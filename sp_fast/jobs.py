"""Training runs as processes of their own: as many at once as there are cores, followed by their logs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sp_fast.files import write_json


class JobFailedError(RuntimeError):
    """A training run ended with an error; the message ends with the end of its output."""


@dataclass(eq=False)
class Job:
    """One training run.

    Attributes:
        name: unique; what is shown.
        command: with all its arguments.
        work_dir: where its logs and weights go; the command is to know it.
        steps: how many it trains for.
        after: the job whose result it starts from.
        step, loss: how far it is, read from its log.
        kept: it was finished by an earlier run of the same command.
    """

    name: str
    command: Sequence[str]
    work_dir: Path
    steps: int
    after: Job | None = None
    step: int = 0
    loss: float | None = None
    kept: bool = False
    finished: bool = False
    _process: subprocess.Popen | None = field(default=None, repr=False)
    _first: tuple[float, int] | None = None
    _moved: float = 0.0

    @property
    def running(self) -> bool:
        """Whether its process is there."""
        return self._process is not None and not self.finished

    @property
    def output(self) -> Path:
        """All that the run printed."""
        return self.work_dir / "output.log"

    @property
    def seconds_per_step(self) -> float | None:
        """Measured since the first logged steps, so without the start; None until there are more."""
        if not self.running or self._first is None or self.step <= self._first[1]:
            return None
        return (self._moved - self._first[0]) / (self.step - self._first[1])

    def keep_if_finished(self) -> bool:
        """Finished when an earlier run of the same command was; otherwise its folder is cleared."""
        stamp = self.work_dir / "finished.json"
        self.kept = stamp.is_file() and json.loads(stamp.read_text()) == self._identity()
        if self.after is not None and not self.after.kept:
            self.kept = False  # what it started from is made anew
        if self.kept:
            self.finished, self.step = True, self.steps
        else:
            shutil.rmtree(self.work_dir, ignore_errors=True)
        return self.kept

    def start(self) -> None:
        """Runs the command on one thread, with its output in a file."""
        self.work_dir.mkdir(parents=True, exist_ok=True)
        threads = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
        # Found however this process found the package, from wherever it was started.
        root = str(Path(__file__).resolve().parent.parent)
        path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        with self.output.open("w") as output:
            self._process = subprocess.Popen(
                list(self.command),
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **threads, "PYTHONPATH": path},
            )

    def poll(self) -> None:
        """Reads the log, and notices the end.

        Raises:
            JobFailedError: the process ended with an error.
        """
        assert self._process is not None
        status = self._process.poll()
        losses = [entry for entry in read_scalars(self.work_dir) if "loss" in entry]
        if losses and losses[-1]["step"] != self.step:
            self.step, self.loss = losses[-1]["step"], losses[-1]["loss"]
            self._moved = time.monotonic()
            self._first = self._first or (self._moved, self.step)
        if status is None:
            return
        if status != 0:
            lines = self.output.read_text(errors="replace").splitlines()[-25:]
            end = "\n".join(f"    {line}" for line in lines)
            raise JobFailedError(
                f"{self.name} failed with exit status {status}. The end of {self.output}:\n{end}"
            )
        self.finished, self.step = True, self.steps
        write_json(self._identity(), self.work_dir / "finished.json")

    def stop(self) -> None:
        """Ends the process, if there is one."""
        if self.running and self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _identity(self) -> dict[str, Any]:
        return {"command": list(self.command)}


def read_scalars(work_dir: Path) -> list[dict[str, Any]]:
    """The entries of a run's newest mmengine log, oldest first; none when there is no log yet."""
    logs = sorted(work_dir.glob("*/vis_data/scalars.json"))
    if not logs:
        return []
    entries = []
    for line in logs[-1].read_text().splitlines():
        try:
            entries.append(json.loads(line))
        except ValueError:
            break  # the last line is being written
    return entries


def available_cores() -> int:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_jobs(
    jobs: Sequence[Job], show: Callable[[Sequence[Job], float | None], None], slots: int | None = None
) -> None:
    """Runs all jobs, in the order given as far as they wait for no other, `slots` at a time.

    Jobs that `keep_if_finished` are not run again. When one fails, or on an interrupt, the others are ended.

    Args:
        jobs: a job stands behind the one it is `after`.
        show: called twice a second with the jobs and the seconds left (None while unknown).
        slots: default: `available_cores`.

    Raises:
        JobFailedError: of the first job that failed.
    """
    slots = slots or available_cores()
    for job in jobs:
        job.keep_if_finished()
    try:
        while not all(job.finished for job in jobs):
            for job in jobs:
                if job.running:
                    job.poll()
            free = slots - sum(job.running for job in jobs)
            waiting = [job for job in jobs if not job.finished and not job.running]
            for job in [job for job in waiting if job.after is None or job.after.finished][:free]:
                job.start()
            show(jobs, seconds_left(jobs, slots))
            time.sleep(0.5)
    finally:
        for job in jobs:
            job.stop()
    show(jobs, 0.0)


def seconds_left(jobs: Sequence[Job], slots: int) -> float | None:
    """When the last job will be done, by playing through what is left at the speeds measured so far."""
    speeds = [job.seconds_per_step for job in jobs if job.seconds_per_step]
    if not speeds:
        return None
    typical = sum(speeds) / len(speeds)
    ends: dict[Job, float] = {job: 0.0 for job in jobs if job.finished}
    busy = []
    for job in jobs:
        if job.running:
            since = time.monotonic() - job._moved if job._first else 0.0
            ends[job] = max((job.steps - job.step) * (job.seconds_per_step or typical) - since, 0.0)
            busy.append(ends[job])
    free = sorted(busy + [0.0] * (slots - len(busy)))
    for job in jobs:
        if job not in ends:
            start = max(free.pop(0), ends[job.after] if job.after else 0.0)
            ends[job] = start + job.steps * typical
            free = sorted([*free, ends[job]])
    return max(ends.values(), default=0.0)
