"""The training loop, which resumes as if it had not been interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.dist import get_rank
from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop
from torch import nn

from sp_fast.mmdet_plugin.batch_parts import BatchParts
from sp_fast.mmdet_plugin.samplers import StepBatchSampler, seed_everything, step_seed
from sp_fast.mmdet_plugin.step_values import StepValues

EVALUATED = "evaluated_step"
STEPS_PER_EPOCH = "steps_per_epoch"
_SEED = "step_seed"
_PARTS = "batch_parts"
_TOTAL = "images_per_step"


class ResumeError(ValueError):
    """A checkpoint cannot be continued with these options."""


@LOOPS.register_module()
class StepTrainLoop(BaseLoop):
    """Trains for a number of steps or epochs; a resumed run is bit-identical to an uninterrupted one.

    Every random number of a step follows from the seed, the step and the rank; the data are not replayed:
    `StepBatchSampler` begins at the step. Validates every `val_interval` and at the end, and resumes an
    unfinished validation from its start. A step may have several batches of the sampler; one that does not
    fit in a GPU's memory is taken in smaller parts, see `BatchParts`.

    Args:
        runner: mmengine's runner.
        dataloader: data loader or its config, with `batch_sampler=dict(type='StepBatchSampler')`.
        max_iters: steps in all; or give `max_epochs`.
        max_epochs: epochs in all, of as many steps as there are batches in the data set. Schedules of the
            learning rate that count epochs need `convert_to_iter_based=True`.
        val_interval: steps or epochs, as the length is given, between two validations; None validates only
            at the end.
        val_first: validate before the first step too.

    Raises:
        ValueError: a number out of range, both lengths or neither, or another batch sampler.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: Any,
        max_iters: int | None = None,
        max_epochs: int | None = None,
        val_interval: int | None = None,
        val_first: bool = False,
    ) -> None:
        lengths = {"max_iters": max_iters, "max_epochs": max_epochs}
        given = {name: value for name, value in lengths.items() if value is not None}
        if len(given) != 1:
            raise ValueError(f"train_cfg: expected max_iters or max_epochs, got {given or 'neither'}")
        for name, value in {**given, "val_interval": val_interval or 1}.items():
            if value != int(value) or value < 1:
                raise ValueError(f"train_cfg.{name}: expected a whole number of at least 1, got {value}")
        super().__init__(runner, dataloader)
        self.val_first = val_first
        self.max_epochs, self.epoch = int(max_epochs or 1), 0  # hooks ask for them
        self.stop_training = False  # set by BestCheckpointHook
        self._iter = 0
        self._sampler = self.dataloader.batch_sampler
        if not isinstance(self._sampler, StepBatchSampler):
            raise ValueError(
                "train_dataloader.batch_sampler: StepTrainLoop expects dict(type='StepBatchSampler'), got "
                f"{type(self._sampler).__name__}"
            )
        self._parts = BatchParts(self._sampler.parts, self._sampler.mean_share)
        unit = 1 if max_epochs is None else len(self._sampler)
        self.max_iters = int(max_iters or self.max_epochs) * unit
        self.val_interval = int(val_interval) * unit if val_interval else self.max_iters
        runner.visualizer.dataset_meta = self.dataloader.dataset.metainfo

    @property
    def iter(self) -> int:
        """Steps done."""
        return self._iter

    def run(self) -> nn.Module:
        """Trains and validates what is left; returns the model.

        Raises:
            ResumeError: a step of the checkpoint had another number of images.
        """
        hub = self.runner.message_hub
        total = hub.get_info(_TOTAL, self._sampler.total)
        if total != self._sampler.total:
            raise ResumeError(
                f"--resume: expected {total} images per step, as in the checkpoint, got "
                f"{self._sampler.total}; add --total-batch {total}, which works with any --batch-size and "
                "number of processes"
            )
        hub.update_info(_TOTAL, total)
        # A checkpoint brings its own: the order goes on, whatever seed is given now.
        self._sampler.seed = hub.get_info(_SEED, self._sampler.seed)
        hub.update_info(_SEED, self._sampler.seed)
        hub.update_info(STEPS_PER_EPOCH, len(self._sampler))
        self._parts.count = hub.get_info(_PARTS, 1)
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        self._validate_if_due()
        if self._iter < self.max_iters:
            self._train()
        self.runner.call_hook("after_train_epoch")
        self.runner.call_hook("after_train")
        return self.runner.model

    def _train(self) -> None:
        self.runner.model.train()
        self._sampler.start = self._iter
        batches = iter(self.dataloader)
        while self._iter < self.max_iters and not self.stop_training:
            self.run_iter(self._next_step(batches))
            self._iter += 1
            self._validate_if_due()

    def _next_step(self, batches: Iterator[dict]) -> dict:
        """The batches of a step, joined."""
        parts = [next(batches) for _ in range(self._sampler.parts)]
        if len(parts) == 1:
            return parts[0]
        return {name: [one for part in parts for one in part[name]] for name in parts[0]}

    def run_iter(self, data_batch: dict) -> None:
        """One step, again and in more parts where the GPU's memory is too small for it."""
        hook_arguments = dict(batch_idx=self._iter, data_batch=data_batch)
        outputs = None
        while outputs is None:
            self._seed()
            self.runner.call_hook("before_train_iter", **hook_arguments)
            outputs = self._parts.train_step(self.runner.model, data_batch, self.runner.optim_wrapper)
            self.runner.message_hub.update_info(_PARTS, self._parts.count)
        self.runner.call_hook("after_train_iter", outputs=StepValues(outputs), **hook_arguments)

    def _validate_if_due(self) -> None:
        step, hub = self._iter, self.runner.message_hub
        due = step % self.val_interval == 0 or step == self.max_iters if step else self.val_first
        if self.runner.val_loop is None or not due or hub.get_info(EVALUATED, -1) == step:
            return
        self._seed()
        self.runner.val_loop.run()
        hub.update_info(EVALUATED, step)
        self.runner.model.train()

    def _seed(self) -> None:
        seed_everything(step_seed(self._sampler.seed, self._iter, get_rank()))
