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
from dataclasses import asdict, dataclass
from pathlib import Path

from sp_fast.experiments.plan import Run, by_cost
from sp_fast.experiments.store import Source
from sp_fast.experiments.time_left import Paces, TimeLeft
from sp_fast.experiments.worker import LENGTH, PROGRESS, read_scalars, seconds_taken
from sp_fast.files import write_json
from sp_fast.locks import LOCK, try_lock

WORKER = (sys.executable, "-W", "ignore", "-m", "sp_fast.experiments.worker")
OUTPUT = "output.log"
STOP_SECONDS = 60.0


class RunFailedError(RuntimeError):
    """A run ended with an error; the message ends with the end of its output."""


class OutOfTimeError(Exception):
    """The time given on the command line is over; what is done is on disk."""


@dataclass(eq=False)
class Task:
    """A run and its progress.

    The state is `waiting`, `running` (here), `elsewhere` (in another call), `done` or `kept` (done before).
    """

    run: Run
    state: str = "waiting"
    step: int = 0
    steps: int = 0  # 0 while unknown
    loss: float | None = None
    process: subprocess.Popen | None = None
    slot: int = 0  # place among the runs at once, which chooses the GPU
    _first: tuple[float, int] | None = None
    _moved: float = 0.0
    _took: float | None = None

    @property
    def finished(self) -> bool:
        """Whether the run is done."""
        return self.state in ("done", "kept")

    @property
    def seconds_per_step(self) -> float | None:
        """Measured from the first step seen here, to leave out the start; None until there is a second."""
        if self._first is None or self.step <= self._first[1]:
            return None
        return (self._moved - self._first[0]) / (self.step - self._first[1])

    @property
    def took(self) -> float | None:
        """Seconds of the finished run, if known."""
        if self._took is None:
            self._took = seconds_taken(self.run)
        return self._took

    def look(self) -> None:
        """Reads how far the run is."""
        if self.run.kind == "train":
            self.steps = self.steps or self.run.steps or self._length()
            logged = read_scalars(self.run.folder).items()
            losses = {step: entry["loss"] for step, entry in logged if "loss" in entry}
            step = max(losses, default=0)
            self.loss = losses.get(step)
        else:
            path = self.run.folder / PROGRESS
            progress = json.loads(path.read_text()) if path.is_file() else {"done": 0, "total": 0}
            step, self.steps = progress["done"], progress["total"]
        if step != self.step:
            self.step, self._moved = step, time.monotonic()
            self._first = self._first or (self._moved, step)

    def _length(self) -> int:
        """Steps of a training that is counted in epochs; 0 until it has begun."""
        path = self.run.folder / LENGTH
        return json.loads(path.read_text())["steps"] if path.is_file() else 0


Show = Callable[[Sequence[Task], TimeLeft], None]


def start(task: Task, source: Source, lock: int, processes: int = 1) -> None:
    """Starts the run's process, which inherits the lock and holds it even if this process is killed."""
    run = task.run
    what = {"kind": run.kind, "spec": run.spec, "seed": run.seed, "needs": run.needs, "processes": processes}
    write_json({**what, "source": asdict(source)}, run.folder / "run.json")
    with (run.folder / OUTPUT).open("a") as output:
        task.process = subprocess.Popen(
            [*WORKER, str(run.folder)],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=worker_environment(task.slot, processes),
            pass_fds=(lock,),
            start_new_session=True,  # so that Ctrl-C reaches only this process, which stops the others
        )
    os.close(lock)
    task.state = "running"


def worker_environment(slot: int = 0, processes: int = 1) -> dict[str, str]:
    """Environment variables of the run in a slot of the concurrent runs, with one GPU per process."""
    # One thread, so that sums do not depend on how many runs share the machine.
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment = {**threads, **os.environ}
    cards = _cards()
    if cards:
        first = slot * processes
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(
            cards[k % len(cards)] for k in range(first, first + min(processes, len(cards)))
        )
    # The run imports the same package as this process, installed or not.
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return environment


def is_running(run: Run) -> bool:
    """Whether a process of this or another call works on the run."""
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


def default_jobs(processes: int = 1) -> int:
    """Number of concurrent runs for which there are GPUs or, without a GPU, cores.

    Raises:
        ValueError: a run has more processes than there are GPUs.
    """
    cards = len(_cards())
    if processes > cards > 0:
        raise ValueError(f"--processes: expected at most the number of GPUs, {cards}, got {processes}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max((cards or cores or 1) // processes, 1)


def run_all(
    runs: Sequence[Run],
    source: Source,
    *,
    jobs: int,
    seconds: float | None,
    show: Show,
    processes: int = 1,
) -> None:
    """Executes all runs that are not finished, and waits for those that another call executes.

    Args:
        runs: the runs, each after those that it needs.
        source: where the experiment is defined.
        jobs: number of concurrent runs.
        seconds: time limit, or None.
        show: called about three times a second with the tasks and the time left.
        processes: number of processes of each training and for proposals.

    Raises:
        OutOfTimeError: the time limit is reached; running processes have saved and ended.
        RunFailedError: a run ended with an error; the others have saved and ended.
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
            _start_ready(tasks, source, jobs, processes)
            show(shown, time_left(shown, jobs))
            time.sleep(0.3)
    finally:
        stop([task for task in tasks.values() if task.state == "running"])
    show(shown, TimeLeft(0.0))


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
        lines = [f"{task.run.label}: failed with exit status {status}. The end of {path}:"]
        lines += path.read_text(errors="replace").splitlines()[-25:]
        raise RunFailedError("\n    ".join(lines))
    task.state = "done"


def _start_ready(tasks: dict[str, Task], source: Source, jobs: int, processes: int) -> None:
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
            start(task, source, lock, processes)


def stop(running: Sequence[Task]) -> None:
    """Asks processes to save and end; kills those that do not within a minute, and all that they started."""
    processes = [task.process for task in running if task.process is not None]
    for process in processes:
        process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        try:
            process.wait(timeout=max(deadline - time.monotonic(), 0.1))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the process leads a session
            process.wait()


def time_left(tasks: Sequence[Task], jobs: int) -> TimeLeft:
    """Estimate: the time of the unfinished runs, divided among those at once, here and in other calls."""
    paces = Paces()
    for task in tasks:
        pace, steps = task.seconds_per_step, task.steps or task.run.steps
        if task.finished:
            if task.took is not None:
                paces.add(task.run, task.took, steps)
        elif pace and steps:
            paces.add(task.run, pace * steps, steps)
    unfinished = [task for task in tasks if not task.finished]
    left = [_seconds_left(task, paces) for task in unfinished]
    known = [seconds for seconds in left if seconds is not None]
    at_once = jobs + sum(task.state == "elsewhere" for task in unfinished)
    seconds = max(sum(known) / max(min(at_once, len(known)), 1), max(known, default=0.0))
    return TimeLeft(seconds, len(left) - len(known))


def _seconds_left(task: Task, paces: Paces) -> float | None:
    pace, steps = task.seconds_per_step, task.steps or task.run.steps
    if pace and steps:
        return max(steps - task.step, 0) * pace
    return paces.seconds(task.run, steps)
