"""Hooks for mmengine's runner: a stop at non-finite losses, the exported weights, checkpoints."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import all_reduce, get_world_size, is_main_process
from mmengine.hooks import EMAHook, Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS

from sp_fast.files import write_tensors
from sp_fast.mmdet_plugin.datasets import OBJECT
from sp_fast.mmdet_plugin.detector_config import detector_config
from sp_fast.mmdet_plugin.loops import EVALUATED
from sp_fast.mmdet_plugin.step_values import LateHook
from sp_fast.pretraining.pretrainer import SaliencyPromptPretrainer
from sp_fast.transfers import Arriving
from sp_fast.work_folder import CHECKPOINT

EXPORTED_NAME = "pretrained.pth"
BEST_NAME = "best.pth"


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
class StopOnNonFiniteLossHook(LateHook):
    """Stops training when a loss is not finite, with the value of each component.

    Runs before any checkpoint of that step is written, so the last one on disk is sound.
    """

    priority = "VERY_HIGH"

    def look(self, runner: Any, step: int, values: Mapping[str, Any]) -> None:
        """Reads a step's losses."""
        values = {name: float(value) for name, value in values.items() if "loss" in name}
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if not bad:
            return
        parts = "\n".join(f"  {name:<24} {value:g}" for name, value in values.items())
        raise NonFiniteLossError(
            f"step {step}: {', '.join(bad)} is not finite. The losses of this step:\n{parts}\n"
            "A lower learning rate, a longer warm-up or gradient clipping (optim_wrapper.clip_grad) may "
            f"help; the checkpoints in {runner.work_dir} are from before."
        )


@HOOKS.register_module()
class ExportPretrainedHook(Hook):
    """Writes `pretrained.pth` in the work folder: weights that load into the plain base model.

    Fine-tuning takes its `state_dict`. With the binary class head, under `class_head`, and the detector's
    config in `meta`, `sp_fast.load` predicts with it. With an EMAHook, all are averaged weights.
    """

    priority = "VERY_LOW"  # after the last checkpoint, by order in the config

    def after_train(self, runner: Any) -> None:
        """Exports the weights."""
        model = unwrapped(runner.model)
        if is_main_process() and isinstance(model, SaliencyPromptPretrainer):
            meta = dict(
                iter=runner.iter,
                cfg=detector_config(runner.cfg).pretty_text,
                dataset_meta=dict(classes=(OBJECT,)),
            )
            with averaged(runner):
                content = dict(state_dict=model.export(), class_head=model.class_head(), meta=meta)
                write_tensors(content, Path(runner.work_dir) / EXPORTED_NAME)


@HOOKS.register_module()
class TimedCheckpointHook(Hook):
    """Keeps one checkpoint to resume from, `latest.pth` in the work folder.

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
        self._asked: Arriving | None = None
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
        resumed = (Path(runner.work_dir) / CHECKPOINT).is_file() and runner.iter
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
        """The signal that asked any of the processes to stop, or 0; on GPUs, before this step."""
        if get_world_size() == 1:
            return self.asked
        asked = torch.full((), self.asked, device="cuda" if torch.cuda.is_available() else "cpu")
        all_reduce(asked, op="max")
        before, self._asked = self._asked, Arriving(asked)
        known = self._asked if self._asked.ready else before
        return int(known.read()) if known is not None else 0

    def _save(self, runner: Any, done: int) -> None:
        state = self._state_at(runner, done)
        if state != self._state:
            runner.save_checkpoint(runner.work_dir, CHECKPOINT, meta=dict(iter=done, epoch=0))
        self._state, self._time = state, time.monotonic()

    @staticmethod
    def _state_at(runner: Any, done: int) -> tuple[int, int]:
        return done, runner.message_hub.get_info(EVALUATED, -1)


@HOOKS.register_module()
class BestCheckpointHook(Hook):
    """Writes `best.pth` in the work folder when a validation gives a higher value than all before it.

    The value is the mask AP that comes first among the metrics, or the first metric; a value that is not
    finite is no improvement. Best value and waiting time are in the checkpoints, so a resumed run goes on
    counting.

    Args:
        patience: validations without improvement after which training stops; None never stops it.
    """

    priority = "LOW"  # once EMAHook has put the training weights back

    def __init__(self, patience: int | None = None) -> None:
        self.patience = patience

    def before_train(self, runner: Any) -> None:
        """Does not train on, if that is what was decided before an interruption."""
        self._stop_if_due(runner)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Compares, and writes."""
        name = headline(metrics or {})
        if name is None or isinstance(runner._train_loop, dict):
            return
        assert metrics is not None
        hub = runner.message_hub
        if metrics[name] > hub.get_info("best_value", -math.inf):
            hub.update_info_dict({"best_value": metrics[name], "best_step": runner.iter, "waited": 0})
            meta = dict(iter=runner.iter, epoch=0, metric=name, value=metrics[name])
            runner.save_checkpoint(
                runner.work_dir, BEST_NAME, save_optimizer=False, save_param_scheduler=False, meta=meta
            )
        else:
            hub.update_info("waited", hub.get_info("waited", 0) + 1)
        self._stop_if_due(runner)

    def _stop_if_due(self, runner: Any) -> None:
        waited = runner.message_hub.get_info("waited", 0)
        if self.patience is not None and waited >= self.patience and runner.iter < runner.max_iters:
            runner.train_loop.stop_training = True
            runner.logger.info(
                f"stopped early after step {runner.iter}: no improvement in {waited} "
                f"validation{'s' * (waited > 1)}; the best was "
                f"{runner.message_hub.get_info('best_value', math.nan):.4f} after step "
                f"{runner.message_hub.get_info('best_step', 0)}"
            )


def headline(metrics: Mapping[str, float]) -> str | None:
    """The name of the metric that a run is judged by: the first mask AP, or the first of all."""
    return next((name for name in metrics if name.endswith("segm_mAP")), next(iter(metrics), None))


@contextlib.contextmanager
def averaged(runner: Any) -> Iterator[None]:
    """Within its block, the model has the weights that an EMAHook has averaged, if there is one."""
    hook = next((one for one in runner.hooks if isinstance(one, EMAHook)), None)
    if hook:
        hook._swap_ema_parameters()
    try:
        yield
    finally:
        if hook:
            hook._swap_ema_parameters()


def unwrapped(model: Any) -> Any:
    """The model inside a data-parallel wrapper."""
    return model.module if is_model_wrapper(model) else model
