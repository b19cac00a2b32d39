"""Training by steps: stopped or killed and taken up again, it is what it would have been, to the bit."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import sys

import pytest
import torch

pytest.importorskip("mmdet")

from mmengine.evaluator import Evaluator
from mmengine.runner import ValLoop

from sp_fast.knet.detector import KNet
from sp_fast.mmdet_plugin.hooks import TimedCheckpointHook
from tests.mmdet_plugin.step_runs import STEPS, assert_same, interrupted, run
from tests.training.runs import write_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(scope="module")
def uninterrupted(scenes, tmp_path_factory):
    """A run of the given model, kind and arguments that nothing stopped; made once."""
    made = {}

    def get(*key, arguments=()):
        if (key, arguments) not in made:
            result = run(scenes, tmp_path_factory.mktemp("run") / "all", *key, arguments=arguments)
            assert result.status == 0, result.printed[-3000:]
            made[key, arguments] = result
        return made[key, arguments]

    return get


def assert_same_runs(one, other):
    first, second = one.checkpoint(), other.checkpoint()
    assert first["meta"]["iter"] == second["meta"]["iter"] == STEPS
    for part in {"state_dict", "ema_state_dict", "optimizer", "param_schedulers"} & first.keys():
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


def test_an_interrupted_run_with_averaged_weights_is_the_same_in_the_end(scenes, uninterrupted, tmp_path):
    """The average and its number of steps are taken up again too, also in the middle of a validation."""
    kept, ema = ("knet_r50", "finetune"), ("--ema",)
    expected = uninterrupted(*kept, arguments=ema)
    for interruption in (interrupted(1), interrupted(4, validating=True, killed=True)):
        run(scenes, tmp_path, *kept, *interruption, arguments=(*ema, "--resume"))
    after = run(scenes, tmp_path, *kept, arguments=(*ema, "--resume"))
    assert after.status == 0, after.printed[-3000:]
    assert_same_runs(expected, after)


def test_averaged_weights_are_what_is_evaluated_and_saved(uninterrupted):
    plain = uninterrupted("knet_r50", "finetune").checkpoint()
    averaged = uninterrupted("knet_r50", "finetune", arguments=("--ema",)).checkpoint()
    trained = averaged["ema_state_dict"]  # mmengine puts the average where the weights are loaded from
    name = "roi_head.mask_head.0.fc_cls.weight"
    assert torch.equal(plain["state_dict"][name], trained[f"module.{name}"])
    assert not torch.equal(plain["state_dict"][name], averaged["state_dict"][name])


def test_averaged_weights_are_exported(scenes, tmp_path):
    export = "custom_hooks.0.type=ExportPretrainedHook"
    result = run(scenes, tmp_path, "knet_r50", "pretrain", export, arguments=("--ema",))
    exported = torch.load(result.folder / "pretrained.pth", weights_only=True)["state_dict"]
    saved = result.checkpoint()["state_dict"]
    assert exported
    kernels = exported.pop("rpn_head.init_kernels.weight")
    assert all(torch.equal(value, saved[f"detector.{name}"]) for name, value in exported.items())
    mean = saved["received.mean"]
    assert mean.any()
    assert torch.equal(kernels, saved["detector.rpn_head.init_kernels.weight"] + mean[:, :, None, None])
    assert not torch.equal(mean, result.checkpoint()["ema_state_dict"]["module.received.mean"])
    name = "neck.lateral_convs.0.conv.weight"
    assert not torch.equal(exported[name], result.checkpoint()["ema_state_dict"][f"module.detector.{name}"])


@pytest.fixture
def measured(monkeypatch):
    """Each validation gives a metric of this list, by the step that it follows."""
    values, steps, plain = [0.1, 0.3, 0.2, 0.25, 0.4, 0.1], [], ValLoop.run

    def run_loop(loop):
        steps.append(loop.runner.iter)
        return plain(loop)

    monkeypatch.setattr(ValLoop, "run", run_loop)
    metrics = ("coco/segm_mAP", "coco/segm_mAP_50")
    monkeypatch.setattr(Evaluator, "evaluate", lambda *_: dict.fromkeys(metrics, values[steps[-1]]))


def test_early_stopping_and_the_best_checkpoint(scenes, tmp_path, measured):
    kept = ("knet_r50", "finetune", "train_cfg.val_interval=1")
    stop = ("--early-stop", "2", "--resume")
    run(scenes, tmp_path, *kept, *interrupted(2, validating=True), arguments=stop)
    result = run(scenes, tmp_path, *kept, arguments=stop)
    assert result.status == 0, result.printed[-3000:]
    assert result.checkpoint()["meta"]["iter"] == 3
    told = "stopped early after step 3: no improvement in 2 validations; the best was 0.3000 after step 1"
    assert told in result.printed
    best = torch.load(result.folder / "best.pth", weights_only=True)
    assert (best["meta"]["iter"], best["meta"]["metric"], best["meta"]["value"]) == (1, "coco/segm_mAP", 0.3)
    assert "optimizer" not in best
    again = run(scenes, tmp_path, *kept, arguments=stop)
    assert again.checkpoint()["meta"]["iter"] == 3
    longer = run(scenes, tmp_path, *kept, arguments=("--resume",))
    assert longer.checkpoint()["meta"]["iter"] == STEPS
    assert torch.load(longer.folder / "best.pth", weights_only=True)["meta"]["iter"] == 4


def test_epochs_are_converted_into_steps(scenes, tmp_path):
    """Six images in batches of two: three steps an epoch."""
    length = ("train_cfg.max_iters=None", "train_cfg.max_epochs=2", "train_cfg.val_interval=1")
    warm_up = ("by_epoch=True", "convert_to_iter_based=True", "end=1")
    options = (*length, *(f"param_scheduler.0.{one}" for one in warm_up))
    result = run(scenes, tmp_path, "knet_r50", "finetune", *options)
    assert result.status == 0, result.printed[-3000:]
    scalars = result.scalars()
    assert sorted(step for step, training in scalars if not training) == [0, 3, 6]
    rates = [values["lr"] for (_, training), values in sorted(scalars.items()) if training]
    assert rates == pytest.approx([2.5e-6, 1.375e-5, 2.5e-5, 2.5e-5, 2.5e-5, 2.5e-5])


def test_an_epoch_has_as_many_steps_as_total_batches(scenes, tmp_path):
    """Six images in steps of five, each in three batches."""
    length = ("train_cfg.max_iters=None", "train_cfg.max_epochs=1", "train_cfg.val_interval=None")
    result = run(scenes, tmp_path, "knet_r50", "finetune", *length, arguments=("--total-batch", "5"))
    assert result.status == 0, result.printed[-3000:]
    assert result.checkpoint()["meta"]["iter"] == 2
    dumped = (result.folder / "config.py").read_text()
    assert "'batch_sampler': {'type': 'StepBatchSampler', 'total': 5}" in dumped


def test_one_length_is_needed(scenes, tmp_path):
    result = run(scenes, tmp_path, "knet_r50", "pretrain", "train_cfg.max_epochs=1")
    assert result.status == 2
    expected = "train_cfg: expected max_iters or max_epochs, got {'max_iters': 5, 'max_epochs': 1}"
    assert expected in result.printed


def test_batches_that_do_not_fit_are_taken_in_parts(scenes, tmp_path, monkeypatch):
    """From the step on in which the memory is too small; after an interruption too."""
    plain, seen = KNet.loss, []

    def loss(self, batch_inputs, batch_data_samples):
        seen.append(len(batch_inputs))
        if len(batch_inputs) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return plain(self, batch_inputs, batch_data_samples)

    monkeypatch.setattr(KNet, "loss", loss)
    kept, total = ("knet_r50", "finetune"), ("--total-batch", "4")
    whole = run(scenes, tmp_path / "whole", *kept, arguments=total)
    assert whole.status == 0, whole.printed[-3000:]
    assert seen == [2] + [1] * 4 * STEPS
    line = "out of memory with 2 images at once: from here on, each batch of 4 is taken in 4 parts"
    assert whole.printed.count(line) == 1
    assert [step for step, training in sorted(whole.scalars()) if training] == [1, 2, 3, 4, 5]

    run(scenes, tmp_path / "parts", *kept, *interrupted(2), arguments=total)
    other = run(scenes, tmp_path / "parts", *kept, arguments=("--resume",))
    assert other.status == 2
    told = "--resume: expected 4 images per step, as in the checkpoint, got 2; add --total-batch 4"
    assert other.printed.splitlines()[-1].startswith(f"sp-fast train: {told}")
    after = run(scenes, tmp_path / "parts", *kept, arguments=("--resume", *total))
    assert line not in after.printed
    assert_same_runs(whole, after)


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc"
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="for steps on a CPU")
def test_memory_is_kept_from_step_to_step(scenes, tmp_path, monkeypatch):
    """64 MiB, twice what glibc keeps by itself, whose pages the system would clear in each step."""
    resource = pytest.importorskip("resource")
    plain, faults = KNet.loss, []

    def loss(self, batch_inputs, batch_data_samples):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.ones(2**24)
        faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
        return plain(self, batch_inputs, batch_data_samples)

    monkeypatch.setattr(KNet, "loss", loss)
    assert run(scenes, tmp_path, "knet_r50", "finetune").status == 0
    assert len(faults) == STEPS
    assert min(faults[1:]) * resource.getpagesize() < 2**24


def test_one_image_that_does_not_fit_is_told(scenes, tmp_path, monkeypatch):
    def loss(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(KNet, "loss", loss)
    result = run(scenes, tmp_path, "knet_r50", "finetune")
    assert result.status == 1
    told = "sp-fast train: a step of 1 image does not fit in the GPU's memory: smaller images"
    assert told in result.printed
    assert "Tried to allocate 2.00 GiB" in result.printed


def test_what_a_run_prints(uninterrupted):
    printed = uninterrupted("knet_r50", "finetune").printed
    lines = printed.splitlines()
    steps = [
        line for line in lines if re.match(r"\d/5 steps, .*loss \d+\.\d{3}, rate \d\.\de-\d\d, mask AP", line)
    ]
    assert (steps[0][:3], steps[-1][:3]) == ("1/5", "5/5")
    told = [line for line in lines if line.startswith("validation after step")]
    assert [line.split(",")[0].split()[-1] for line in told] == ["0", "2", "4", "5"]
    assert "class-agnostic mask" in printed
    assert any("AP50" in line for line in lines)
    assert "mmengine - INFO" not in printed
    log = next(uninterrupted("knet_r50", "finetune").folder.glob("*/*.log")).read_text()
    assert "loss_rpn" in log or "s0_loss" in log


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


def test_a_total_batch_needs_the_batch_sampler(scenes, tmp_path):
    option = "train_dataloader.batch_sampler.type=AspectRatioBatchSampler"
    result = run(scenes, tmp_path, "knet_r50", "pretrain", option, arguments=("--total-batch", "4"))
    assert result.status == 2
    assert "--total-batch: expected a config with train_dataloader.batch_sampler" in result.printed


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
