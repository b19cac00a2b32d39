"""The loop: schedule, resuming after a crash, and a stop at losses that are not finite."""

from dataclasses import replace

import pytest
import torch
from torch import nn

pytest.importorskip("mmdet")

from sp_fast.mmdet_plugin.hooks import NonFiniteLossError
from sp_fast.study import training
from sp_fast.study.training import Budget, Schedule, spaced, train

SCHEDULE = Schedule(
    steps=12,
    batch_size=2,
    lr=0.01,
    weight_decay=0.05,
    backbone_lr=0.25,
    warm_up=0.25,
    milestones=(2 / 3, 11 / 12),
    max_norm=1,
)


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(3, 4)
        self.head = nn.Linear(4, 1)


class WithKernels(Toy):
    def __init__(self):
        super().__init__()
        self.init_kernels = nn.Conv2d(4, 5, 1, bias=False)


def run(folder, crash_at=None, value=lambda step: 1.0):
    torch.manual_seed(0)
    model = Toy()

    def losses_of(step):
        if step == crash_at:
            raise KeyboardInterrupt
        noise = torch.rand(2, 3)  # follows from the seed and the step
        return {"loss_a": model.head(model.backbone(noise)).square().mean() * value(step)}

    result = train(model, losses_of, SCHEDULE, folder, 7, Budget(), after={6: lambda: {"x": 1.0}})
    return model.state_dict(), result


def test_after_a_crash_the_run_ends_as_if_there_had_been_none(tmp_path, monkeypatch):
    expected, whole = run(tmp_path / "whole")
    monkeypatch.setattr(training, "SAVE_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "crashed", crash_at=8)
    assert torch.load(tmp_path / "crashed" / training.CHECKPOINT)["step"] == 8
    state, result = run(tmp_path / "crashed")
    for name, value in expected.items():
        assert torch.equal(state[name], value), name
    assert result["log"] == whole["log"]
    assert result["after"] == whole["after"] == {"6": {"x": 1.0}}
    assert [entry["step"] for entry in result["log"]] == list(range(1, 13))


def test_rate_rises_then_falls_and_the_backbone_has_its_share(tmp_path):
    factors = [SCHEDULE.factor(step) for step in range(12)]
    assert factors[0] == pytest.approx(0.001)
    assert factors[:4] == sorted(factors[:4])
    assert factors[3:8] == [1.0] * 5
    assert factors[8:11] == pytest.approx([0.1] * 3)
    assert factors[11] == pytest.approx(0.01)
    groups = SCHEDULE.optimizer(Toy()).param_groups
    assert [(group["share"], len(group["params"])) for group in groups] == [(1.0, 2), (0.25, 2)]
    faster = replace(SCHEDULE, kernel_lr=10.0).optimizer(WithKernels()).param_groups
    assert [(group["share"], len(group["params"])) for group in faster] == [(1.0, 2), (0.25, 2), (10.0, 1)]
    frozen = Toy()
    frozen.backbone.requires_grad_(False)
    assert len(SCHEDULE.optimizer(frozen).param_groups) == 1


def test_losses_that_are_not_finite_stop_the_run_before_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "SAVE_SECONDS", -1.0)
    with pytest.raises(NonFiniteLossError, match="loss_a"):
        run(tmp_path, value=lambda step: float("nan") if step == 5 else 1.0)
    assert torch.load(tmp_path / training.CHECKPOINT)["step"] == 5


def test_evaluations_at_equal_distances():
    assert list(spaced(600, 3)) == [200, 400, 600]
    assert list(spaced(2, 5)) == [1, 2]
