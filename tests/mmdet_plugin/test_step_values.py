"""Hooks see the losses of a step once they are on the host: on a GPU, after the next step."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("mmdet")

from mmengine.hooks import LoggerHook
from mmengine.logging import MessageHub

from sp_fast.mmdet_plugin.hooks import NonFiniteLossError, StopOnNonFiniteLossHook
from sp_fast.mmdet_plugin.step_values import StepInfoHook, StepValues


class OnTheWay(StepValues):
    """Values that a GPU is still computing."""

    ready = False


def runner(*hooks, interval=50):
    hub = MessageHub.get_instance("test_step_values")
    hub.__init__("test_step_values")
    return SimpleNamespace(hooks=[LoggerHook(interval), *hooks], message_hub=hub, iter=0, work_dir="runs")


def logged(run):
    buffer = run.message_hub.log_scalars.get("train/loss")
    return [] if buffer is None else buffer.data[0].tolist()


def steps(run, hook, losses, kind=OnTheWay):
    for loss in losses:
        hook.after_train_iter(run, outputs=kind({"loss": torch.tensor(loss)}))
        run.iter += 1


def test_values_are_those_of_the_tensors():
    values = StepValues({"loss": torch.tensor(1.5), "grad_norm": torch.tensor([0.25])})
    assert dict(values) == {"loss": 1.5, "grad_norm": 0.25}
    assert values.ready
    assert dict(StepValues({})) == {}


def test_on_a_cpu_a_step_is_seen_at_once():
    hook = StepInfoHook()
    run = runner(hook)
    steps(run, hook, [1.0, 2.0], StepValues)
    assert logged(run) == [1.0, 2.0]


def test_on_a_gpu_a_step_is_seen_after_the_next_one_and_before_a_validation():
    hook = StepInfoHook()
    run = runner(hook)
    steps(run, hook, [1.0, 2.0, 3.0])
    assert logged(run) == [1.0, 2.0]
    run.message_hub.update_info("loop_stage", "train")
    hook.before_val(run)
    assert logged(run) == [1.0, 2.0, 3.0]


def test_a_line_of_the_log_has_its_own_step():
    hook = StepInfoHook()
    run = runner(hook, interval=2)
    steps(run, hook, [1.0, 2.0, 3.0])
    assert logged(run) == [1.0, 2.0]
    steps(run, hook, [4.0])
    assert logged(run) == [1.0, 2.0, 3.0, 4.0]


def test_a_loss_that_is_not_finite_stops_the_run_one_step_later_and_is_named_by_its_own_step():
    hook = StopOnNonFiniteLossHook()
    run = runner(hook)
    steps(run, hook, [1.0, torch.nan])
    with pytest.raises(NonFiniteLossError, match="step 2: loss is not finite"):
        steps(run, hook, [3.0])


def test_no_checkpoint_follows_a_loss_that_is_not_finite():
    hook = StopOnNonFiniteLossHook()
    run = runner(hook)
    steps(run, hook, [torch.nan])
    with pytest.raises(NonFiniteLossError, match="step 1: loss is not finite"):
        hook.catch_up(run)  # as Runner.save_checkpoint does before it writes
