"""Trainings and proposals in several processes: the GPUs, the command, and signals to stop."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from sp_fast.experiments import Proposals, worker
from sp_fast.experiments.plan import Plan
from sp_fast.experiments.scheduler import WORKER, Task, default_jobs, start, stop, worker_environment
from sp_fast.experiments.store import Source
from sp_fast.locks import try_lock
from tests.experiments import made_up
from tests.experiments.tiny import tiny


def test_each_run_has_a_gpu_per_process(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7,8")
    assert worker_environment(0, 2)["CUDA_VISIBLE_DEVICES"] == "4,5"
    assert worker_environment(1, 2)["CUDA_VISIBLE_DEVICES"] == "6,7"
    assert worker_environment(3)["CUDA_VISIBLE_DEVICES"] == "7"
    assert default_jobs(2) == 2
    assert default_jobs() == 5
    with pytest.raises(ValueError, match="--processes: expected at most the number of GPUs, 5, got 8"):
        default_jobs(8)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES" not in worker_environment(0, 2).keys() - os.environ.keys()
    assert default_jobs(1000) == 1


@pytest.mark.parametrize("ending", ["done", "failed", "stopped"])
def test_a_training_is_started_as_torchrun_does(tmp_path, monkeypatch, ending):
    started = []

    def elastic_launch(config, program):
        def run(*arguments):
            started.append((config, program, *arguments))
            if ending == "failed":
                failure = ProcessFailure(local_rank=0, pid=1, exitcode=2, error_file="none")
                raise ChildFailedError("training", {0: failure})
            if ending == "stopped":
                raise SignalException("stop", signal.SIGTERM)

        return run

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", elastic_launch)
    monkeypatch.setattr(worker, "_trained", lambda folder, training: {"config": training["config"]})
    run = Plan(tiny(), tmp_path, [0]).of("none", "few", 0)
    run.folder.mkdir(parents=True)
    what = {"kind": run.kind, "spec": dict(run.spec), "seed": 0, "needs": run.needs, "processes": 2}
    (run.folder / "run.json").write_text(json.dumps(what))
    assert worker.main(run.folder) == {"done": 0, "failed": 2, "stopped": 143}[ending]
    ((config, *command),) = started
    assert (config.nproc_per_node, config.max_restarts) == (2, 0)
    module = ["-m", "sp_fast.experiments.worker", str(run.folder), "--make-only"]
    assert command == [sys.executable, "-W", "ignore", *module]
    assert run.finished == (ending == "done")


def test_several_processes_make_the_same_proposals(tmp_path):
    made_up.write_images(tmp_path / "images", count=5)
    backbone = {"name": "random", "seed": 0}
    options = {"center": True, "similarity": "cosine", "threshold": 0.7}
    spec = asdict(Proposals(str(tmp_path / "images"), backbone=backbone, size=None, options=options))
    what = {"kind": "proposals", "spec": spec, "seed": 0, "needs": {}}
    folders = [tmp_path / str(processes) for processes in (1, 2)]
    for processes, folder in enumerate(folders, start=1):
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({**what, "processes": processes}))
        command = [*WORKER, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, env=worker_environment())
        assert done.returncode == 0, done.stderr
    for name in ("masks.json", "masks.seeds.safetensors", "result.json", "progress.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    assert len(json.loads((folders[0] / "masks.json").read_text())["annotations"]) > 5


def test_a_run_gets_its_number_of_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("sp_fast.experiments.scheduler.WORKER", (sys.executable, "-c", ""))
    run = Plan(tiny(), tmp_path, [0]).of("none", "few", 0)
    run.folder.mkdir(parents=True)
    task = Task(run)
    start(task, Source("tiny"), try_lock(run.folder / "lock"), 4)
    task.process.wait()
    assert json.loads((run.folder / "run.json").read_text())["processes"] == 4


WAITS = (
    "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(143)); print(flush=True); time.sleep(60)"
)


def test_processes_of_a_run_that_does_not_end_are_killed_too(tmp_path, monkeypatch):
    script = "import signal, subprocess, sys; signal.signal(15, signal.SIG_IGN); "
    child = f"subprocess.Popen([sys.executable, '-c', {WAITS!r}]).wait()"
    monkeypatch.setattr("sp_fast.experiments.scheduler.WORKER", (sys.executable, "-c", script + child))
    monkeypatch.setattr("sp_fast.experiments.scheduler.STOP_SECONDS", 0.1)
    run = Plan(tiny(), tmp_path, [0]).of("none", "few", 0)
    run.folder.mkdir(parents=True)
    task = Task(run)
    start(task, Source("tiny"), try_lock(run.folder / "lock"), 2)
    deadline = time.monotonic() + 30
    while not (run.folder / "output.log").read_text():  # the child is there
        assert time.monotonic() < deadline
        time.sleep(0.05)
    stop([task])
    assert task.process.returncode == -signal.SIGKILL
    while time.monotonic() < deadline:
        try:
            os.killpg(task.process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the child is still there")
