"""Work folders of trainings: one run at a time, overwritten only on request."""

import multiprocessing

import pytest

from sp_fast.work_folder import RESULTS, claimed, remove_results


def hold(folder, ready, done):
    with claimed(folder, resume=False, overwrite=False):
        ready.set()
        done.wait(60)


def test_one_run_at_a_time(tmp_path):
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path / "run", ready, done))
    other.start()
    try:
        assert ready.wait(60)
        with (
            pytest.raises(ValueError, match="--work-dir: another run is at work in"),
            claimed(tmp_path / "run", resume=True, overwrite=False),
        ):
            pass
    finally:
        done.set()
        other.join()
    with claimed(tmp_path / "run", resume=True, overwrite=False):
        pass


@pytest.mark.parametrize("name", RESULTS)
def test_results_are_overwritten_only_if_asked(tmp_path, name):
    (tmp_path / name).touch()
    with (
        pytest.raises(ValueError, match=rf"has {name} of an earlier run. --resume goes on .* --overwrite"),
        claimed(tmp_path, resume=False, overwrite=False),
    ):
        pass
    with claimed(tmp_path, resume=True, overwrite=False):
        assert (tmp_path / name).exists()
    with claimed(tmp_path, resume=False, overwrite=True):
        assert (tmp_path / name).exists()  # until the new run can start
        remove_results(tmp_path)
    assert not (tmp_path / name).exists()


def test_half_written_files_of_killed_runs_are_removed(tmp_path):
    for name in (".latest.pth.123.partial", ".mine.pth.123.partial"):
        (tmp_path / name).touch()
    with claimed(tmp_path, resume=False, overwrite=False):
        assert not (tmp_path / ".latest.pth.123.partial").exists()
    assert (tmp_path / ".mine.pth.123.partial").exists()
