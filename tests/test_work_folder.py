"""Work folders of trainings: one run at a time, overwritten only on request."""

import multiprocessing
import os

import pytest

from sp_fast.work_folder import RESULTS, claimed, newest_checkpoint, remove_results


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


@pytest.mark.parametrize("name", [*RESULTS, "epoch_3.pth", "iter_20.pth"])
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


def test_the_newest_checkpoint_is_found_without_its_pointer_and_in_a_moved_folder(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    paths = [tmp_path / name for name in ("epoch_9.pth", "epoch_10.pth", "iter_4.pth")]
    for age, path in enumerate(paths):
        path.touch()
        os.utime(path, (100 - age, 100 - age))
    (tmp_path / "epoch_best.pth").touch()
    assert newest_checkpoint(tmp_path) == paths[0]
    (tmp_path / "last_checkpoint").write_text("/before/it/was/moved/epoch_10.pth")
    assert newest_checkpoint(tmp_path) == paths[1]
    paths[1].unlink()
    assert newest_checkpoint(tmp_path) == paths[0]
    (tmp_path / "latest.pth").touch()
    assert newest_checkpoint(tmp_path) == tmp_path / "latest.pth"


@pytest.mark.parametrize("written", ["", ".", "/"])
def test_a_pointer_to_no_file_is_passed_over(tmp_path, written):
    (tmp_path / "last_checkpoint").write_text(written)
    assert newest_checkpoint(tmp_path) is None
