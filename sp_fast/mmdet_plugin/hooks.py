"""Hooks for mmengine's runner: a stop at non-finite losses, the exported weights, checkpoints by time."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from sp_fast.files import replacing
from sp_fast.mmdet_plugin.datasets import OBJECT
from sp_fast.mmdet_plugin.detector_config import detector_config
from sp_fast.mmdet_plugin.loops import EVALUATED
from sp_fast.pretraining.pretrainer import SaliencyPromptPretrainer

EXPORTED_NAME = "pretrained.pth"
CHECKPOINT_NAME = "latest.pth"


class NonFiniteLossError(RuntimeError):
    """A loss became infinite or NaN."""


class StopRequestedError(Exception):
    """A signal asked the run to stop, and the checkpoint is written.

    Attributes:
        signal: number of the signal.
    """

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")
        self.signal = number


@HOOKS.register_module()
class StopOnNonFiniteLossHook(Hook):
    """Stops training when a loss is not finite, with the value of each component.

    Runs before any checkpoint of that step is written, so the last one on disk is sound.
    """

    priority = "VERY_HIGH"

    def after_train_iter(self, runner: Any, outputs: dict | None = None, **_: Any) -> None:
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

    Fine-tuning takes its `state_dict`. With the binary class head, under `class_head`, and the detector's
    config in `meta`, `sp_fast.load` predicts with it.

    Args:
        interval: epochs between two exports; 0 exports only at the end.
    """

    priority = "LOW"

    def __init__(self, interval: int = 1) -> None:
        self.interval = interval

    def after_train_epoch(self, runner: Any) -> None:
        """Exports every `interval` epochs."""
        if self.every_n_epochs(runner, self.interval):
            self.after_train(runner)

    def after_train(self, runner: Any) -> None:
        """Exports the weights."""
        model = unwrapped(runner.model)
        if is_main_process() and isinstance(model, SaliencyPromptPretrainer):
            meta = dict(
                epoch=runner.epoch,
                iter=runner.iter,
                cfg=detector_config(runner.cfg).pretty_text,
                dataset_meta=dict(classes=(OBJECT,)),
            )
            content = dict(state_dict=model.export(), class_head=model.class_head(), meta=meta)
            with replacing(Path(runner.work_dir) / EXPORTED_NAME) as file:
                torch.save(content, file)


@HOOKS.register_module()
class TimedCheckpointHook(Hook):
    """Keeps one checkpoint, `latest.pth` in the work folder, for training that is counted in steps.

    Written when `seconds` have passed since the last one, before each validation, at the end, and when a
    signal asked the run to stop.

    Attributes:
        asked: number of the signal that asked this process to stop, or 0.

    Args:
        seconds: time between two checkpoints; a killed process loses at most this much training.

    Raises:
        StopRequestedError: after the step or validation batch in which the signal came.
    """

    priority = "VERY_LOW"

    def __init__(self, seconds: float = 60.0) -> None:
        self.seconds = seconds
        self.asked = 0
        self._time = 0.0
        self._state: tuple[int, int] | None = None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Within its block, the first SIGTERM or SIGINT asks the run to stop; a second acts as before."""
        in_main = threading.current_thread() is threading.main_thread()  # others cannot set handlers
        signals = (signal.SIGTERM, signal.SIGINT) if in_main else ()
        before = {one: signal.getsignal(one) for one in signals}

        def restore() -> None:
            for one, handler in before.items():
                signal.signal(one, handler)

        def note(number: int, _: object) -> None:
            self.asked = number
            restore()

        for one in signals:
            signal.signal(one, note)
        try:
            yield
        finally:
            restore()

    def before_train(self, runner: Any) -> None:
        """Starts the clock; a state that was just loaded need not be saved again."""
        self._time = time.monotonic()
        resumed = (Path(runner.work_dir) / CHECKPOINT_NAME).is_file() and runner.iter
        self._state = self._state_at(runner, runner.iter) if resumed else None

    def after_train_iter(self, runner: Any, **_: Any) -> None:
        """Saves when it is time to, or when the run is to stop."""
        done = runner.iter + 1
        number = self._asked_anywhere()
        if number or time.monotonic() - self._time >= self.seconds:
            self._save(runner, done)
        if number:
            raise StopRequestedError(number, done)

    def before_val(self, runner: Any) -> None:
        """Saves, so that a run that stops during the validation goes on with it."""
        if runner.iter:
            self._save(runner, runner.iter)

    def after_val_iter(self, runner: Any, **_: Any) -> None:
        """Stops a validation; the processes of a distributed one may not have equally many batches."""
        if self.asked and get_world_size() == 1:
            raise StopRequestedError(self.asked, runner.iter)

    def after_train(self, runner: Any) -> None:
        """Saves the last state."""
        self._save(runner, runner.iter)

    def _asked_anywhere(self) -> int:
        """The signal that asked any of the processes to stop, or 0."""
        if get_world_size() == 1:
            return self.asked
        asked = torch.tensor(self.asked, device="cuda" if torch.cuda.is_available() else "cpu")
        all_reduce(asked, op="max")
        return int(asked)

    def _save(self, runner: Any, done: int) -> None:
        state = self._state_at(runner, done)
        if state != self._state:
            runner.save_checkpoint(runner.work_dir, CHECKPOINT_NAME, meta=dict(iter=done, epoch=0))
        self._state, self._time = state, time.monotonic()

    @staticmethod
    def _state_at(runner: Any, done: int) -> tuple[int, int]:
        return done, runner.message_hub.get_info(EVALUATED, -1)


def unwrapped(model: Any) -> Any:
    """The model inside a data-parallel wrapper."""
    return model.module if is_model_wrapper(model) else model
