"""Hooks for mmengine's runner: a stop at non-finite losses, the exported weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from sp_fast.files import replacing
from sp_fast.pretraining.pretrainer import SaliencyPromptPretrainer

EXPORTED_NAME = "pretrained.pth"


class NonFiniteLossError(RuntimeError):
    """A loss became infinite or NaN."""


@HOOKS.register_module()
class StopOnNonFiniteLossHook(Hook):
    """Stops training when a loss is not finite, with the value of each component.

    Runs before any checkpoint of that step is written, so the last one on disk is sound.
    """

    priority = "VERY_HIGH"

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Reads the step's losses."""
        values = {
            name: torch.as_tensor(value).detach().item()
            for name, value in (outputs or {}).items()
            if "loss" in name
        }
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if not bad:
            return
        parts = "\n".join(f"  {name:<24} {value:g}" for name, value in values.items())
        raise NonFiniteLossError(
            f"step {runner.iter + 1}: {', '.join(bad)} is not finite. The losses of this step:\n{parts}\n"
            "A lower learning rate, a longer warm-up or gradient clipping (optim_wrapper.clip_grad) may "
            f"help; the checkpoints in {runner.work_dir} are from before."
        )


@HOOKS.register_module()
class ExportPretrainedHook(Hook):
    """Writes `pretrained.pth` in the work folder: weights that load into the plain base model.

    Written every `interval` and at the end, beside first and then renamed.

    Args:
        interval: epochs (or steps, with `by_epoch=False`) between two exports; 0 for the end alone.
        by_epoch: the unit of `interval`.
    """

    priority = "LOW"

    def __init__(self, interval: int = 1, *, by_epoch: bool = True) -> None:
        self.interval = interval
        self.by_epoch = by_epoch

    def after_train_epoch(self, runner: Any) -> None:
        """Exports every `interval` epochs."""
        if self.by_epoch and self.interval and self.every_n_epochs(runner, self.interval):
            self._export(runner)

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: dict | None = None
    ) -> None:
        """Exports every `interval` steps."""
        if not self.by_epoch and self.interval and self.every_n_train_iters(runner, self.interval):
            self._export(runner)

    def after_train(self, runner: Any) -> None:
        """Exports the final weights."""
        self._export(runner)

    def _export(self, runner: Any) -> None:
        model = unwrapped(runner.model)
        if is_main_process() and isinstance(model, SaliencyPromptPretrainer):
            path = Path(runner.work_dir) / EXPORTED_NAME
            write_weights(model.export(), path, epoch=runner.epoch, iter=runner.iter)


def unwrapped(model: Any) -> Any:
    """The model inside a data-parallel wrapper."""
    return model.module if is_model_wrapper(model) else model


def write_weights(state_dict: dict[str, torch.Tensor], path: Path, **meta: Any) -> None:
    """Saves `{"state_dict": ..., "meta": ...}` to `path`, beside first and then renamed."""
    with replacing(path) as file:
        torch.save({"state_dict": state_dict, "meta": meta}, file)
