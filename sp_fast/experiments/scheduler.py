"""Runs the processes of an experiment: some at once, each as soon as what it needs is there.

Several calls on one folder, on one machine or on machines with one file system, divide the runs by locks.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sp_fast.experiments.plan import Run, by_cost
from sp_fast.experiments.scalars import read_scalars
from sp_fast.experiments.store import Source
from sp_fast.experiments.worker import PROGRESS
from sp_fast.files import write_json
from sp_fast.locks import try_lock

WORKER = (sys.executable, "-W", "ignore", "-m", "sp_fast.experiments.worker")
OUTPUT = "output.log"
LOCK = "lock"
STOP_SECONDS = 60.0


class RunFailedError(RuntimeError):
    """A run ended with an error; the message ends with the end of its output."""


class OutOfTimeError(Exception):
    """The time given on the command line is over; what is done is on disk."""


@dataclass(eq=False)
class Task:
    """A run and how far it is.

    Attributes:
        run: what is run.
        state: `waiting`, `running` (here), `elsewhere` (in another call), `done`, `kept` (was done before).
        step, steps: steps done, and in all; 0 while unknown.
        loss: the last one that was logged.
    """

    run: Run
    state: str = "waiting"
    step: int = 0
    steps: int = 0
    loss: float | None = None
    process: subprocess.Popen | None = field(default=None, repr=False)
    slot: int = 0
    _first: tuple[float, int] | None = None
    _moved: float = 0.0

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self.state in ("done", "kept")

    @property
    def seconds_per_step(self) -> float | None:
        """Measured since the first steps seen here, so without the start; None until there are more."""
        if self.state != "running" or self._first is None or self.step <= self._first[1]:
            return None
        return (self._moved - self._first[0]) / (self.step - self._first[1])

    def look(self) -> None:
        """Reads how far the run is."""
        self.steps = self.run.steps or 0
        if self.run.kind == "train":
            losses = {
                step: one["loss"] for step, one in read_scalars(self.run.folder).items() if "loss" in one
            }
            step = max(losses, default=0)
            self.loss = losses.get(step)
        else:
            path = self.run.folder / PROGRESS
            progress = json.loads(path.read_text()) if path.is_file() else {"done": 0, "total": 0}
            step, self.steps = progress["done"], progress["total"]
        if step != self.step:
            self.step, self._moved = step, time.monotonic()
            self._first = self._first or (self._moved, step)

    def expected_seconds(self, typical: float | None) -> float | None:
        """Time left at its own speed, or else at `typical` seconds per step."""
        speed = self.seconds_per_step or typical
        if speed is None or not self.run.steps:
            return None
        since = time.monotonic() - self._moved if self._first and self.state == "running" else 0.0
        return max((self.run.steps - self.step) * speed - since, 0.0)


def start(task: Task, source: Source, lock: int) -> None:
    """Starts the run's process, which holds the lock from now on, whatever becomes of this one."""
    run = task.run
    write_json(
        {
            "kind": run.kind,
            "spec": run.spec,
            "seed": run.seed,
            "needs": run.needs,
            "source": {"name": source.name, "arguments": source.arguments},
        },
        run.folder / "run.json",
    )
    environment = dict(os.environ)
    for library in ("OMP", "MKL", "OPENBLAS"):
        # One thread, so that sums do not depend on how many runs share the machine.
        environment.setdefault(f"{library}_NUM_THREADS", "1")
    cards = _cards()
    if cards:
        environment["CUDA_VISIBLE_DEVICES"] = cards[task.slot % len(cards)]
    # The package is found however this process found it, from wherever it was started.
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    with (run.folder / OUTPUT).open("a") as output:
        task.process = subprocess.Popen(
            [*WORKER, str(run.folder)],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            pass_fds=(lock,),
            start_new_session=True,  # Ctrl-C in the terminal is for this process, which ends the others
        )
    os.close(lock)
    task.state = "running"


def is_running(run: Run) -> bool:
    """Whether a process of this or another call is making the run."""
    if not (run.folder / LOCK).is_file():
        return False
    lock = try_lock(run.folder / LOCK)
    if lock is not None:
        os.close(lock)
    return lock is None


def _cards() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [one for one in named.split(",") if one]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def default_jobs() -> int:
    """One run per GPU, or per core where there is none."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return len(_cards()) or cores


def run_all(
    runs: Sequence[Run],
    source: Source,
    *,
    jobs: int,
    seconds: float | None,
    show: Callable[[Sequence[Task], float | None], None],
) -> None:
    """Makes all runs that are not finished; those that another call makes are waited for.

    Args:
        runs: each stands after those that it needs.
        source: of the experiment.
        jobs: processes at once.
        seconds: when to stop, or None.
        show: called about twice a second with the tasks and the seconds left (None while unknown).

    Raises:
        OutOfTimeError: the time is over; running processes were asked to save and have ended.
        RunFailedError: a run ended with an error; the others were ended.
    """
    end = None if seconds is None else time.monotonic() + seconds
    tasks = {run.key: Task(run, "kept" if run.finished else "waiting") for run in by_cost(runs)}
    shown = [tasks[run.key] for run in runs]
    try:
        while not all(task.finished for task in tasks.values()):
            if end is not None and time.monotonic() >= end:
                raise OutOfTimeError
            for task in tasks.values():
                _poll(task)
            _start_ready(tasks, source, jobs)
            show(shown, seconds_left(list(tasks.values()), jobs))
            time.sleep(0.3)
    finally:
        stop([task for task in tasks.values() if task.state == "running"])
    show(shown, 0.0)


def _poll(task: Task) -> None:
    if task.state == "elsewhere" and task.run.finished:
        task.state = "done"
    if task.state != "running":
        return
    assert task.process is not None
    status = task.process.poll()
    task.look()
    if status is None:
        return
    if status != 0 or not task.run.finished:
        path = task.run.folder / OUTPUT
        lines = path.read_text(errors="replace").splitlines()[-25:]
        tail = "\n".join(f"    {line}" for line in lines)
        raise RunFailedError(
            f"{task.run.label}: failed with exit status {status}. The end of {path}:\n{tail}"
        )
    task.state = "done"


def _start_ready(tasks: dict[str, Task], source: Source, jobs: int) -> None:
    used = {task.slot for task in tasks.values() if task.state == "running"}
    free = [slot for slot in range(jobs) if slot not in used]
    for task in tasks.values():
        if not free:
            return
        ready = all(tasks[before].finished for before in task.run.needs.values())
        if task.state not in ("waiting", "elsewhere") or not ready:
            continue
        task.run.folder.mkdir(parents=True, exist_ok=True)
        lock = try_lock(task.run.folder / LOCK)
        if lock is None:
            task.state = "elsewhere"
        elif task.run.finished:
            os.close(lock)
            task.state = "done"
        else:
            task.slot = free.pop(0)
            start(task, source, lock)


def stop(running: Sequence[Task]) -> None:
    """Asks processes to save and end; those that do not within a minute are killed."""
    for task in running:
        assert task.process is not None
        if task.process.poll() is None:
            task.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    for task in running:
        assert task.process is not None
        try:
            task.process.wait(timeout=max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            task.process.kill()
            task.process.wait()


def seconds_left(tasks: Sequence[Task], jobs: int) -> float | None:
    """When the last run will be done, by playing through what is left at the speeds measured so far."""
    speeds = [task.seconds_per_step for task in tasks if task.run.kind == "train" and task.seconds_per_step]
    typical = sum(speeds) / len(speeds) if speeds else None
    ends = {task.run.key: 0.0 for task in tasks if task.finished}
    busy = []
    for task in tasks:
        if not task.finished and task.state != "waiting":
            left = task.expected_seconds(typical)
            if left is None:
                return None
            ends[task.run.key] = left
            busy.append(left)
    free = sorted(busy + [0.0] * (jobs - len(busy)))
    for task in tasks:
        if task.run.key in ends:
            continue
        length = task.expected_seconds(typical)
        if length is None:
            return None
        begin = max(free.pop(0), *(ends[before] for before in task.run.needs.values()), 0.0)
        ends[task.run.key] = begin + length
        free = sorted([*free, ends[task.run.key]])
    return max(ends.values(), default=0.0)
