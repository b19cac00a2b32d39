"""mmengine's Runner, whose weights come from checked files before training begins."""

from __future__ import annotations

import contextlib
import difflib
import functools
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine import runner as mmengine_runner
from mmengine.dist import is_main_process
from mmengine.logging import MMLogger
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import OPTIMIZERS, LinearParamScheduler
from mmengine.runner import BaseLoop, set_random_seed
from torch import nn
from torch.utils.data import DataLoader

from sp_fast.freed_memory import freed_memory_kept, keep_freed_memory
from sp_fast.mmdet_plugin.class_rows import match_rows, matching_classes, named_classes
from sp_fast.mmdet_plugin.datasets import InstanceDataset
from sp_fast.mmdet_plugin.features import StoredFeaturesHook
from sp_fast.mmdet_plugin.hooks import EXPORTED_NAME, NonFiniteLossError, TimedCheckpointHook, unwrapped
from sp_fast.mmdet_plugin.progress import ProgressHook, quieten
from sp_fast.mmdet_plugin.resuming import check_same_run, replay_schedules, schedules
from sp_fast.mmdet_plugin.safe_resume import install_safe_resume, load_checkpoint_file
from sp_fast.mmdet_plugin.shared_batch import SharedCollate
from sp_fast.mmdet_plugin.step_values import LateHook
from sp_fast.mmdet_plugin.transforms import pack_for
from sp_fast.mmdet_plugin.wrapped import inner_datasets
from sp_fast.pretraining.adapters import class_heads
from sp_fast.pretraining.pretrainer import SaliencyPromptPretrainer
from sp_fast.weights import load_backbone_weights, load_state, read_with_state
from sp_fast.work_folder import newest_checkpoint

_COMPLETE = (
    "choose a fine-tuned checkpoint of this config: an evaluation needs every tensor. A pre-trained model is "
    "evaluated, with the head of its pre-training, by `sp-fast evaluate`"
)

_MATCHING = "matrix contains invalid numeric entries"  # scipy's linear_sum_assignment on NaN


class Runner(mmengine_runner.Runner):
    """Initialises once, then loads files that must fit; its checkpoints hold no code."""

    optim_wrapper: Any
    param_schedulers: Any
    _initialised = False
    _resume: bool
    _load_from: str | None

    @classmethod
    def from_cfg(cls, cfg: Any) -> Runner:
        """See mmengine."""
        install_safe_resume()
        return super().from_cfg(cfg)

    @staticmethod
    def build_dataloader(*args: Any, **kwargs: Any) -> DataLoader:
        """Like mmengine's, but batches come in one piece, and signals to the training's process group do not
        end the loaders' workers.

        torchrun asks whole process groups to stop, and a training whose workers are gone cannot save.
        """
        loader = mmengine_runner.Runner.build_dataloader(*args, **kwargs)
        loader.pin_memory = torch.cuda.is_available()  # by a thread of its own, beside the step
        loader.collate_fn = SharedCollate(loader.collate_fn)
        loader.worker_init_fn = functools.partial(_in_own_group, loader.worker_init_fn)
        return loader

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """See mmengine; a `ProgressHook` takes the place of its lines on the terminal."""
        logger = super().build_logger(*args, **kwargs)
        logger.addFilter(_WithoutRepetition())
        hooks = [*(self.cfg.get("default_hooks") or {}).values(), *(self.cfg.get("custom_hooks") or [])]
        if any(hook and hook["type"] == "ProgressHook" for hook in hooks):
            quieten(logger)
        return logger

    def initialise(
        self,
        *,
        weights: str | None = None,
        allow_partial: bool = False,
        load_from: str | None = None,
        complete: bool = False,
    ) -> None:
        """The model's own initialisation, then the backbone's weights, then those of the whole model.

        Args:
            weights: published weights for the backbone, in any layout that
                `load_backbone_weights` reads.
            allow_partial: keep the initial value of what `weights` lacks, and say what that is.
            load_from: a checkpoint of the model, or of its pre-training; class heads may differ.
            complete: no tensor may differ or be missing from `load_from`, as an evaluation needs it.

        Raises:
            ValueError: a file that is no weights file, or whose keys or shapes do not fit; lists them.
        """
        # Seeded again, so that a layer more (Eq. 9's) does not change how the rest begins.
        set_random_seed(self.seed)
        super()._init_model_weights()
        self._initialised = True
        model = unwrapped(self.model)
        detector = getattr(model, "detector", model)
        if weights:
            loaded = load_backbone_weights(detector.backbone, weights, allow_partial=allow_partial)
            self.logger.info(f"backbone weights from {weights}: {loaded}")
            if isinstance(model, SaliencyPromptPretrainer):
                model.backbone_loaded()
        if load_from:
            self._load_model(load_from, complete)

    def _load_model(self, path: str, complete: bool) -> None:
        model = unwrapped(self.model)
        checkpoint, state = read_with_state(path)
        if isinstance(model, SaliencyPromptPretrainer):
            report = load_state(model, state, path)
        else:
            if any(name.startswith("detector.") for name in state):
                raise ValueError(
                    f"{path}: expected weights of the model, got a checkpoint of its pre-training, which "
                    f"serves --resume and `sp-fast evaluate`; the weights are beside it, in {EXPORTED_NAME}"
                )
            heads = class_heads(model)
            loop = self.test_loop if complete else self.train_loop
            own = tuple(loop.dataloader.dataset.metainfo["classes"])
            theirs = named_classes(checkpoint) or own
            if theirs != own:
                self.logger.info(matching_classes(path, theirs, own, complete=complete))
                match_rows(state, model.state_dict(), heads, (theirs, own))
            options: dict[str, Any] = dict(remedy=_COMPLETE) if complete else dict(allow=heads)
            report = load_state(model, state, path, **options)
        self.logger.info(f"weights from {path}: {report}")

    def check_before_training(self, *, resume: bool) -> None:
        """Builds all that training needs, so that errors show before it starts.

        Raises:
            ValueError: the stored seeds are damaged; the backbone's maps cannot be kept; or with `resume`,
                the checkpoint in the work folder does not belong to this run.
        """
        _ = self.val_loop
        if is_main_process():
            for dataset in dict.fromkeys(inner_datasets(self.train_loop.dataloader.dataset)):
                if seeds := getattr(dataset, "seeds", None):
                    seeds.check_whole()
                if isinstance(dataset, InstanceDataset):
                    self._warn_of_too_few_kernels(dataset)
        optimizer = self.cfg.optim_wrapper.optimizer.type
        if isinstance(optimizer, str) and optimizer not in OPTIMIZERS.module_dict:
            nearest = difflib.get_close_matches(optimizer, list(OPTIMIZERS.module_dict), cutoff=0.0)
            raise ValueError(
                f"optim_wrapper.optimizer.type: expected an optimiser such as {', '.join(nearest)}, got "
                f"{optimizer!r}"
            )
        self.optim_wrapper = self.build_optim_wrapper(self.optim_wrapper)
        if self.param_schedulers is not None:
            self.param_schedulers = self.build_param_scheduler(self.param_schedulers)
        for hook in self.hooks:
            if isinstance(hook, StoredFeaturesHook):
                hook.before_run(self)
        newest = self._newest_checkpoint() if resume else None
        if newest:
            check_same_run(self, load_checkpoint_file(newest), newest)
        for schedule in self.param_schedulers or []:
            if isinstance(schedule, LinearParamScheduler) and schedule.end > self.max_iters:
                self.logger.warning(
                    f"warm-up of {schedule.end} steps in a run of {self.max_iters}: the learning rate does "
                    "not reach its full value. Train longer, or shorten it: "
                    "--cfg-options param_scheduler.0.end=STEPS"
                )

    def _warn_of_too_few_kernels(self, dataset: InstanceDataset) -> None:
        model = unwrapped(self.model)
        detector = getattr(model, "detector", model)
        objects = dataset.objects()
        for head, name in (("rpn_head", "num_proposals"), ("panoptic_head", "num_queries")):
            kernels = getattr(getattr(detector, head, None), name, None)
            if kernels is not None and (objects > kernels).any():
                self.logger.warning(
                    f"{dataset.ann_file}: {(objects > kernels).sum()} of {len(objects)} images have more "
                    f"objects (up to {objects.max()}) than the model has kernels ({kernels}), each of which "
                    f"finds one: more need --cfg-options with {head}.{name}, and weights that have as many"
                )

    def train(self) -> nn.Module:
        """See mmengine; with a `TimedCheckpointHook`, signals stop the run after a step.

        Without a GPU, a step's memory is kept for the next step.
        """
        model = unwrapped(self.model)
        pack_for(getattr(model, "detector", model), self.train_loop.dataloader.dataset)
        timed = next((one for one in self.hooks if isinstance(one, TimedCheckpointHook)), None)
        with contextlib.ExitStack() as during:
            if not torch.cuda.is_available():
                during.enter_context(freed_memory_kept())
            during.enter_context(self._line_closed())
            if timed:
                during.enter_context(timed.watching())
            try:
                return super().train()
            except ValueError as error:
                if _MATCHING not in str(error):
                    raise
                raise NonFiniteLossError(
                    f"step {self.iter + 1}: the cost of matching predictions to objects is not finite. "
                    "A lower learning rate, a longer warm-up or gradient clipping (optim_wrapper.clip_grad) "
                    f"may help; the checkpoints in {self.work_dir} are from before."
                ) from None

    def test(self) -> dict:
        """See mmengine."""
        with self._line_closed():
            return super().test()

    @contextlib.contextmanager
    def _line_closed(self) -> Iterator[None]:
        """Removes the line of progress, however its block ends."""
        try:
            yield
        finally:
            for hook in self.hooks:
                if isinstance(hook, ProgressHook):
                    hook.close()

    def load_or_resume(self) -> None:
        """See mmengine; then fills the data sets' caches, unless no step is left."""
        newest = self._newest_checkpoint() if self._resume else None
        if newest:
            self._load_from = newest
        elif self._load_from is None:
            self._resume = False  # else mmengine looks for a checkpoint again, and says that there is none
        planned = schedules(self) if self._resume else []
        super().load_or_resume()
        if self._resume and self.iter and planned != schedules(self):
            replay_schedules(self)
        if self._resume and self.iter:
            self.logger.info(f"resumed after step {self.iter} of {self.max_iters} from {self._load_from}")
        if isinstance(self._train_loop, BaseLoop) and self.iter < self.max_iters:
            for loop in filter(None, (self.train_loop, self.val_loop)):
                for dataset in dict.fromkeys(inner_datasets(loop.dataloader.dataset)):
                    getattr(dataset, "fill_cache", lambda: None)()

    def _newest_checkpoint(self) -> str | None:
        """The checkpoint in the work folder to resume from, written by this package or by mmengine's hook."""
        newest = newest_checkpoint(Path(self.work_dir))
        return None if newest is None else str(newest)

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """See mmengine; every hook has seen the step's losses before."""
        for hook in self.hooks:
            if isinstance(hook, LateHook):
                hook.catch_up(self)
        super().save_checkpoint(*args, **kwargs)

    def setup_env(self, env_cfg: dict) -> None:
        """See mmengine; fp32 products on a GPU are in TF32."""
        super().setup_env(env_cfg)
        if torch.cuda.is_available():
            torch.set_float32_matmul_precision("high")

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """See mmengine, which names a GPU for every process and so fails where there is none.

        On a GPU the weights, and so the maps, have their channels last, as its convolutions want them.
        """
        if torch.cuda.is_available():
            model = model.to(memory_format=torch.channels_last)
        if not self.distributed or model_wrapper_cfg is not None or torch.cuda.is_available():
            return super().wrap_model(model_wrapper_cfg, model)
        unused = self.cfg.get("find_unused_parameters", False)
        return MMDistributedDataParallel(model, broadcast_buffers=False, find_unused_parameters=unused)

    def _init_model_weights(self) -> None:
        if not self._initialised:
            super()._init_model_weights()


def _in_own_group(initialise: Callable[[int], None] | None, worker: int) -> None:
    if hasattr(os, "setpgrp"):  # not on Windows
        os.setpgrp()
    keep_freed_memory()
    if initialise is not None:
        initialise(worker)


class _WithoutRepetition(logging.Filter):
    """Leaves out the lines per parameter, and mmengine's warnings about itself."""

    parts = (
        *("paramwise_options", "is skipped since", '"FileClient" will be', '"HardDiskBackend" is'),
        "is not defined in message_hub",
    )

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(part in message for part in self.parts)
