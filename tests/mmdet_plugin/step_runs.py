"""Small runs that count steps, in this process: their config, the command, and what it left."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import sp_fast.models  # noqa: F401

# isort: split
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from sp_fast.train import main
from tests.conftest import forget_runs
from tests.pretraining.narrow import NARROW
from tests.training.runs import CONFIGS, finetune_options, pretrain_options

STEPS = 5
CONFIG = """
_base_ = [
    '{configs}/_base_/{model}.py', '{configs}/_base_/{kind}.py', '{configs}/_base_/runtime.py'
]
from_scratch = True
{rest}
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(pipeline=[
        dict(type='ReadImage'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        dict(type='Resize', scale=(64, 64), keep_ratio=True),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PackInstances'),
    ]),
)
param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=4)]
default_hooks = dict(logger=dict(interval=1))
custom_hooks = [dict(type='StopOnNonFiniteLossHook'), dict(type='InterruptHook')]
"""
FINETUNE = """
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(
    pipeline=[dict(type='ReadImage'), dict(type='PackInstances')]))
test_dataloader = val_dataloader
train_cfg = dict(_delete_=True, type='StepTrainLoop', max_iters=5, val_interval=2, val_first=True)
"""
PRETRAIN = """
model = dict(_delete_=True, type='SaliencyPromptPretrainer', detector=_base_.model, source='cached',
             prompts=dict(drop_rate=0.5, fold='kernel'), supervision=dict(seed_channels=1))
train_cfg = dict(_delete_=True, type='StepTrainLoop', max_iters=5)
"""
TIMES = ("time", "data_time", "eta")


class Interrupted(Exception):
    """Stands for a killed process: nothing is saved on its way out."""


@HOOKS.register_module()
class InterruptHook(Hook):
    """Sends a signal to this process, or ends it, in a step or in the validation after it.

    Args:
        step: steps that are done by then; None never.
        validating: in the validation after that step.
        killed: no signal, the end.
    """

    def __init__(self, step: int | None = None, validating: bool = False, killed: bool = False) -> None:
        self.step, self.validating, self.killed = step, validating, killed

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """In the step."""
        self._interrupt(runner, validating=False)

    def before_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """In the validation."""
        if batch_idx == 1:
            self._interrupt(runner, validating=True)

    def _interrupt(self, runner: Any, validating: bool) -> None:
        if runner.iter != self.step or validating != self.validating:
            return
        if self.killed:
            raise Interrupted
        os.kill(os.getpid(), signal.SIGTERM)


class Run(NamedTuple):
    """What a call of the command left.

    Attributes:
        status: exit status, or None when it was killed.
        printed: to both outputs.
        folder: work folder.
    """

    status: int | None
    printed: str
    folder: Path

    def checkpoint(self) -> dict[str, Any]:
        """The last one."""
        return torch.load(self.folder / "latest.pth", weights_only=True)

    def scalars(self) -> dict[tuple, dict[str, float]]:
        """What was logged, but times, by step and whether of a validation; equal where logged twice."""
        logged: dict[tuple, dict[str, float]] = {}
        for path in sorted(self.folder.glob("*/vis_data/scalars.json")):
            for line in path.read_text().splitlines():
                values = {key: value for key, value in json.loads(line).items() if key not in TIMES}
                key = values["step"], "loss" in values
                assert logged.setdefault(key, values) == values
        return logged


def run(scenes: Path, folder: Path, model: str, kind: str, *options: str, arguments: tuple = ()) -> Run:
    """The command on a narrow model: kind `finetune` or `pretrain`, with --cfg-options.

    Args:
        scenes: of `tests.training.runs.write_scenes`.
        folder: config and work folder.
        model: name of a config of a model.
        kind: `finetune` or `pretrain`.
        options: `--cfg-options`.
        arguments: more of the command line.
    """
    folder.mkdir(exist_ok=True)
    rest = FINETUNE if kind == "finetune" else PRETRAIN
    config = folder / "config.py"
    config.write_text(CONFIG.format(configs=CONFIGS, model=model, kind=kind, rest=rest))
    data = finetune_options(scenes) if kind == "finetune" else pretrain_options(scenes)
    prefix = "model" if kind == "finetune" else "model.detector"
    family = model.removesuffix("_r50")
    narrow = [f"{prefix}.{name}={value}".replace(" ", "") for name, value in NARROW[family].items()]
    command = [str(config), *data, "--work-dir", str(folder / "run"), *map(str, arguments)]
    command += ["--cfg-options", *narrow, *options]
    printed, status = io.StringIO(), None
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        # mmengine formats the config five times per run, which takes longer than the run.
        patch.setattr(Config, "pretty_text", property(lambda cfg: repr(cfg.to_dict())))
        out, err = contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed)
        with out, err, contextlib.suppress(Interrupted):
            status = main(command)
    forget_runs()
    return Run(status, printed.getvalue(), folder / "run")


def interrupted(step: int, *, validating: bool = False, killed: bool = False) -> list[str]:
    """The --cfg-options of an interruption."""
    given = {"step": step, "validating": validating, "killed": killed}
    return [f"custom_hooks.1.{name}={value}" for name, value in given.items()]


def assert_same(one: Any, other: Any) -> None:
    """Two nested values with the same tensors and numbers, bit by bit."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same(value, other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for value, its in zip(one, other, strict=True):
            assert_same(value, its)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other
