"""Runs as processes: order, sharing, stopping, killing, several calls at once, and the same results."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from sp_fast.experiments import results
from sp_fast.experiments.plan import Plan
from sp_fast.experiments.scheduler import OutOfTimeError, RunFailedError, Task, time_left
from sp_fast.experiments.worker import LENGTH
from sp_fast.files import write_json
from tests.experiments.tiny import run, tiny


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The results of an experiment that nothing disturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        out = tmp_path_factory.mktemp("whole")
        run(out)
    return (out / results.RESULTS).read_text()


def starts(out):
    """Where each run began, each time that it was started."""
    return {path.parent.name: path.read_text().split() for path in out.glob("runs/*/starts")}


def call(out, *arguments):
    """A call in a process of its own."""
    command = [sys.executable, "-m", "tests.experiments.tiny", str(out), *arguments]
    return subprocess.Popen(command, env=dict(os.environ, CUDA_VISIBLE_DEVICES=""))


def wait_for(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def test_each_run_starts_once_after_what_it_needs(tmp_path, whole):
    found = run(tmp_path)  # the fake worker fails where something it needs is not finished
    assert set(map(tuple, starts(tmp_path).values())) == {("0",)}
    assert found["finished"] == found["runs"] == len(starts(tmp_path))
    assert (tmp_path / results.RESULTS).read_text() == whole
    run(tmp_path)
    assert set(map(tuple, starts(tmp_path).values())) == {("0",)}  # nothing was made again


def test_time_is_up_and_the_same_call_goes_on(tmp_path, whole):
    calls = 0
    while True:
        calls += 1
        try:
            run(tmp_path, seconds=0.6)
            break
        except OutOfTimeError:
            assert calls < 100
    assert calls > 1
    assert any(begun[-1] != "0" for begun in starts(tmp_path).values())  # some went on in the middle
    assert (tmp_path / results.RESULTS).read_text() == whole


def test_two_calls_divide_the_runs(tmp_path, whole):
    both = [call(tmp_path), call(tmp_path)]
    assert [one.wait(timeout=120) for one in both] == [0, 0]
    assert set(map(tuple, starts(tmp_path).values())) == {("0",)}
    assert (tmp_path / results.RESULTS).read_text() == whole


def test_a_killed_call_leaves_runs_that_another_call_waits_for(tmp_path, whole):
    first = call(tmp_path)
    wait_for(lambda: starts(tmp_path))
    first.send_signal(signal.SIGKILL)
    first.wait()
    run(tmp_path)
    assert all(len(begun) == 1 for begun in starts(tmp_path).values())
    assert (tmp_path / results.RESULTS).read_text() == whole


def test_a_failed_run_is_told_with_the_end_of_its_output(tmp_path):
    with pytest.raises(RunFailedError, match=r"(?s)no pre-training.*status 1.*the config is broken"):
        run(tmp_path, tiny(config="broken"))


def test_rows_alone_make_what_they_need_and_no_more(tmp_path):
    found = run(tmp_path, rows=["none"])
    assert {name.split("-")[0] for name in starts(tmp_path)} == {"none"}
    assert found["rows"]["none"]["trainings"]["few"]["summary"]["AP"]["mean"] == 0.5 * 100
    assert found["rows"]["labels"]["trainings"]["few"]["summary"] == {}
    assert found["missing"]


def test_time_left_is_steps_left_at_the_measured_speed(tmp_path):
    plan = Plan(tiny(steps=10), tmp_path, [0])
    tasks = [Task(one) for one in plan.needed(["none", "labels"], [0]) if one.kind == "train"]
    assert str(time_left(tasks, 2)) == "time left not known yet"
    tasks[0].state, tasks[0].step = "running", 5
    tasks[0]._first, tasks[0]._moved = (100.0, 1), 104.0  # 1 second per step
    # 5 steps of this run, 10 of each other; two runs at once.
    seconds = (5 + 10 * (len(tasks) - 1)) / 2
    assert time_left(tasks, 2) == (seconds, 0)
    unknown = Task(next(one for one in plan.runs.values() if one.kind == "proposals"))
    assert time_left([*tasks, unknown], 2) == (seconds, 1)
    assert str(time_left([*tasks, unknown], 2)) == f"at least 0:{seconds:02.0f} left"
    unknown.state = "kept"
    assert str(time_left([*tasks, unknown], 2)) == f"about 0:{seconds:02.0f} left"
    # Another call takes its share, but no run is divided.
    tasks[-1].state = "elsewhere"
    assert time_left(tasks, len(tasks)).seconds == 10
    assert time_left(tasks, 1).seconds == (5 + 10 * (len(tasks) - 1)) / 2


def test_time_left_follows_finished_runs_that_do_the_same(tmp_path):
    plan = Plan(dataclasses.replace(tiny(steps=10), data_per_seed=True), tmp_path, [0, 1])
    done, left = (plan.needed(["labels"], [seed]) for seed in plan.seeds)
    for k, one in enumerate(done):
        write_json({"seconds": 10.0**k}, one.folder / "times.json")
    assert len(done) == len(left) > 2
    tasks = [*(Task(one, "kept") for one in done), *map(Task, left)]
    assert time_left(tasks, 1) == (sum(10.0**k for k in range(len(done))), 0)
    # Of an earlier version, which did not keep the time: as long as the other trainings per step.
    (done[-1].folder / "times.json").unlink()
    tasks = [*(Task(one, "kept") for one in done), *map(Task, left)]
    assert time_left(tasks, 1).unknown == 0


def test_a_training_in_epochs_tells_its_steps(tmp_path):
    pytest.importorskip("mmdet")
    from sp_fast.experiments.length import LengthHook

    plan = Plan(tiny(epochs=5), tmp_path, [0, 1])
    tasks = [Task(plan.of("none", "few", seed)) for seed in plan.seeds]
    log = tasks[0].run.folder / "1" / "vis_data" / "scalars.json"
    log.parent.mkdir(parents=True)
    tasks[0].state = "running"
    tasks[0].look()
    assert tasks[0].steps == 0
    runner = SimpleNamespace(message_hub=SimpleNamespace(get_info={"steps_per_epoch": 4}.get), max_iters=20)
    LengthHook(tasks[0].run.folder / LENGTH).before_train(runner)
    for step in (1, 6):
        log.write_text(json.dumps({"step": step, "loss": 1.0}))
        tasks[0].look()
    assert (tasks[0].step, tasks[0].steps) == (6, 20)
    tasks[0]._first, tasks[0]._moved = (100.0, 1), 105.0  # 1 second per step
    # The other seed has as many steps; another training is of unknown length.
    assert time_left(tasks, 1) == (14 + 20, 0)
    assert time_left([*tasks, Task(plan.of("none", "many", 0))], 1) == (14 + 20, 1)
