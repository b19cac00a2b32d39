"""Training by steps: stopped or killed and taken up again, it is what it would have been, to the bit."""

from __future__ import annotations

import os
import signal

import pytest
import torch

pytest.importorskip("mmdet")

from mmengine.runner import ValLoop

from sp_fast.mmdet_plugin.hooks import TimedCheckpointHook
from tests.mmdet_plugin.step_runs import STEPS, assert_same, interrupted, run
from tests.training.runs import write_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def uninterrupted(scenes, tmp_path_factory):
    """A run of the given model and kind that nothing stopped; made once."""
    made = {}

    def get(model, kind):
        if (model, kind) not in made:
            made[model, kind] = run(scenes, tmp_path_factory.mktemp("run") / "all", model, kind)
            assert made[model, kind].status == 0, made[model, kind].printed[-3000:]
        return made[model, kind]

    return get


def assert_same_runs(one, other):
    first, second = one.checkpoint(), other.checkpoint()
    assert first["meta"]["iter"] == second["meta"]["iter"] == STEPS
    for part in ("state_dict", "optimizer", "param_schedulers"):
        assert_same(first[part], second[part])
    assert one.scalars() == other.scalars()


@pytest.mark.parametrize(
    ("model", "kind", "interruption", "reached"),
    [
        ("knet_r50", "finetune", interrupted(2), 3),
        ("knet_r50", "finetune", interrupted(2, validating=True), 2),
        ("knet_r50", "finetune", interrupted(3, killed=True), 2),
        ("mask2former_r50", "finetune", interrupted(4, validating=True, killed=True), 4),
    ],
)
def test_an_interrupted_run_is_the_same_in_the_end(
    scenes, uninterrupted, tmp_path, model, kind, interruption, reached
):
    """Flips, dropped prompts and Mask2Former's random points included."""
    expected = uninterrupted(model, kind)
    before = run(scenes, tmp_path, model, kind, *interruption)
    assert before.checkpoint()["meta"]["iter"] == reached
    if before.status is not None:
        assert before.status == 128 + signal.SIGTERM
        stopped = f"sp-fast train: stopped by SIGTERM after step {reached}"
        assert before.printed.splitlines()[-1] == f"{stopped}; the same command with --resume goes on"
    after = run(scenes, tmp_path, model, kind, arguments=("--resume",))
    assert after.status == 0, after.printed[-3000:]
    assert_same_runs(expected, after)


def test_validations_are_before_the_first_step_every_second_and_the_last(uninterrupted):
    scalars = uninterrupted("knet_r50", "finetune").scalars()
    assert sorted(step for step, training in scalars if not training) == [0, 2, 4, 5]
    assert sorted(step for step, training in scalars if training) == [1, 2, 3, 4, 5]


def test_reading_in_a_process_of_its_own_changes_nothing(scenes, uninterrupted, tmp_path):
    kept = ("mask2former_r50", "finetune")
    result = run(scenes, tmp_path, *kept, "train_dataloader.num_workers=1")
    assert result.status == 0, result.printed[-3000:]
    assert_same_runs(uninterrupted(*kept), result)


def test_a_finished_run_validates_only_if_that_is_missing(scenes, tmp_path, monkeypatch):
    kept = ("knet_r50", "finetune", "train_cfg.val_first=False", "train_cfg.max_iters=1")
    result = run(scenes, tmp_path, *kept)
    assert result.status == 0, result.printed[-3000:]
    path = result.folder / "latest.pth"
    written = path.stat().st_mtime_ns
    again = run(scenes, tmp_path, *kept, arguments=("--resume",))
    assert again.status == 0
    assert path.stat().st_mtime_ns == written
    assert "segm_mAP" not in again.printed
    assert "images/s" not in again.printed

    checkpoint = result.checkpoint()
    del checkpoint["message_hub"]["runtime_info"]["evaluated_step"]
    del checkpoint["message_hub"]["resumed_keys"]["evaluated_step"]
    torch.save(checkpoint, path)
    validations = []
    plain = ValLoop.run
    monkeypatch.setattr(ValLoop, "run", lambda loop: validations.append(loop) or plain(loop))
    again = run(scenes, tmp_path, *kept, arguments=("--resume",))
    assert again.status == 0
    assert len(validations) == 1


def test_a_work_folder_can_be_moved(scenes, uninterrupted, tmp_path):
    kept = ("knet_r50", "pretrain")
    run(scenes, tmp_path / "here", *kept, *interrupted(1))
    (tmp_path / "here").rename(tmp_path / "there")
    after = run(scenes, tmp_path / "there", *kept, arguments=("--resume",))
    assert after.status == 0, after.printed[-3000:]
    assert_same_runs(uninterrupted(*kept), after)


def test_resuming_without_a_checkpoint_begins(scenes, tmp_path):
    result = run(scenes, tmp_path, "knet_r50", "pretrain", "train_cfg.max_iters=1", arguments=("--resume",))
    assert result.status == 0
    assert result.checkpoint()["meta"]["iter"] == 1


def test_another_batch_sampler_is_refused(scenes, tmp_path):
    option = "train_dataloader.batch_sampler.type=AspectRatioBatchSampler"
    result = run(scenes, tmp_path, "knet_r50", "pretrain", option)
    assert result.status == 2
    assert "StepTrainLoop expects dict(type='StepBatchSampler'), got AspectRatio" in result.printed


def test_a_second_signal_acts_as_without_a_request():
    came = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        hook = TimedCheckpointHook()
        with hook.watching():
            os.kill(os.getpid(), signal.SIGINT)
            assert (hook.asked, came) == (signal.SIGINT, [])
            os.kill(os.getpid(), signal.SIGINT)
            assert came == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, before)
