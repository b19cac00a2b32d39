"""Runs as processes: how many at once, in which order, and what becomes of them when one fails."""

import io
import json
import os
import sys
import time

import pytest
from rich.console import Console

from sp_fast.jobs import Job, JobFailedError, read_scalars, run_jobs, seconds_left
from sp_fast.report.progress import JobsView

# Notes when it runs, logs as mmengine does, and ends as it is told.
SCRIPT = """
import json, pathlib, sys, time
work_dir, steps, status = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
log = work_dir / "20250101_000000" / "vis_data"
log.mkdir(parents=True)
start = time.time()
with (log / "scalars.json").open("w") as scalars:
    for step in range(1, steps + 1):
        scalars.write(json.dumps({"loss": 10.0 / step, "step": step}) + "\\n")
    scalars.write('{"loss": 1')
time.sleep(0.2 if status >= 0 else 60)
(work_dir / "span.json").write_text(json.dumps([start, time.time()]))
if status:
    print("it went wrong here")
sys.exit(status)
"""


@pytest.fixture
def make_job(tmp_path):
    def make(name, status=0, after=None, steps=3):
        work_dir = tmp_path / name
        command = [sys.executable, "-c", SCRIPT, str(work_dir), str(steps), str(status)]
        return Job(name, command, work_dir, steps, after)

    return make


def span(job):
    return json.loads((job.work_dir / "span.json").read_text())


def test_jobs_wait_for_what_they_start_from_and_for_a_free_slot(make_job):
    first = make_job("first")
    second = make_job("second", after=first)
    third = make_job("third")
    seen = []
    run_jobs([first, second, third], lambda jobs, left: seen.append([job.running for job in jobs]), slots=1)
    assert max(map(sum, seen)) == 1
    assert span(first)[1] <= span(second)[0]
    assert span(second)[1] <= span(third)[0]
    assert all(job.finished and job.step == 3 for job in (first, second, third))
    assert second.loss == 10 / 3  # the last whole line of its log


def test_independent_jobs_run_at_once(make_job):
    jobs = [make_job("first"), make_job("second")]
    run_jobs(jobs, lambda *_: None, slots=2)
    (start, end), (other_start, other_end) = map(span, jobs)
    assert start < other_end
    assert other_start < end


def test_finished_jobs_are_kept_unless_what_they_start_from_is_made_anew(make_job):
    def make():
        first = make_job("first")
        return first, make_job("second", after=first)

    run_jobs(make(), lambda *_: None)
    kept = make()
    before = span(kept[1])
    run_jobs(kept, lambda *_: None)
    assert all(job.kept for job in kept)
    assert span(kept[1]) == before
    again = make()
    again[0].steps = 5
    again[0].command = make_job("first", steps=5).command
    run_jobs(again, lambda *_: None)
    assert not any(job.kept for job in again)
    assert span(again[1]) != before


def test_failure_shows_the_end_of_the_output_and_ends_the_others(make_job):
    failing, endless = make_job("failing", status=3), make_job("endless", status=-1)
    start = time.monotonic()
    with pytest.raises(JobFailedError, match=r"(?s)failing failed with exit status 3.*it went wrong here"):
        run_jobs([failing, endless], lambda *_: None, slots=2)
    assert time.monotonic() - start < 30
    with pytest.raises(ProcessLookupError):
        os.kill(endless._process.pid, 0)
    assert not (failing.work_dir / "finished.json").exists()


def test_interrupt_ends_the_jobs_and_the_unfinished_one_runs_again(make_job):
    job = make_job("endless", status=-1)

    def interrupt(jobs, left):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_jobs([job], interrupt)
    assert job._process.poll() is not None
    again = make_job("endless")
    run_jobs([again], lambda *_: None)
    assert not again.kept


def measured(job, steps_done, seconds_per_step):
    """The job as if it were running at this speed."""
    job._process, job._moved = object(), time.monotonic()
    job._first = job._moved - seconds_per_step * (steps_done - 1), 1
    job.step = steps_done
    return job


def test_time_left_plays_the_schedule_through(make_job):
    first = measured(make_job("first", steps=101), 51, 2.0)  # 100 seconds left
    second = make_job("second", after=first, steps=20)  # then 40 at the same speed
    third = make_job("third", steps=10)  # 20, beside
    assert seconds_left([first, second, third], slots=2) == pytest.approx(140, abs=1)
    assert seconds_left([first, second, third], slots=1) == pytest.approx(160, abs=1)
    assert seconds_left([make_job("waiting")], slots=1) is None


def test_run_without_a_log_has_no_entries(tmp_path):
    assert read_scalars(tmp_path) == []


def test_terminal_shows_bars_and_what_is_waited_for(make_job):
    first = measured(make_job("first", steps=100), 25, 2.0)
    first.loss = 9.123
    second = make_job("second", after=first)
    printed = io.StringIO()
    with JobsView(Console(file=printed, force_terminal=True, width=100)) as view:
        view([first, second], 123.0)
    assert "25/100" in printed.getvalue()
    assert "loss 9.12" in printed.getvalue()
    assert "waiting" in printed.getvalue()
    assert "about 2:03 left" in printed.getvalue()
