"""What a training step would wait for on a GPU, counted on the CPU; see benchmarks/counted_device.py.

The whole command runs, on narrow models with as many stages as the shipped ones. A step is all between the
starts of two steps: the batch's way to the device, forward and backward pass, optimiser and hooks.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any

import pytest
import torch

pytest.importorskip("mmdet")

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from benchmarks.counted_device import counting, register
from tests.mmdet_plugin.step_runs import Interrupted, run
from tests.training.runs import write_scenes

STAGES = {
    "knet": ["roi_head.num_stages=3", "roi_head.stage_loss_weights=[1,1,1]"],
    "queryinst": ["roi_head.num_stages=6", "roi_head.stage_loss_weights=[1,1,1,1,1,1]"],
    "mask2former": [
        "panoptic_head.transformer_decoder.num_layers=9",
        "panoptic_head.pixel_decoder.encoder.num_layers=6",
    ],
}


@HOOKS.register_module(force=True)
class CountWaitsHook(Hook):
    """Moves the model to the counted device, and counts the waits of each step after the first."""

    priority = "HIGHEST"
    counts: list[Counter[str]] = []  # noqa: RUF012 (of the last run)

    def __init__(self) -> None:
        self._block = contextlib.ExitStack()
        type(self).counts = []

    def before_train(self, runner: Any) -> None:
        """Moves the model; the optimiser keeps its parameters."""
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            runner.model.to(register())
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)
        self._block.enter_context(counting())

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """A new count."""
        self._block.close()
        found = self._block.enter_context(counting())
        if runner.iter:
            self.counts.append(found)

    def before_val(self, runner: Any) -> None:
        """Ends the run."""
        self._block.close()
        raise Interrupted

    def after_train_epoch(self, runner: Any) -> None:
        """Ends the last count."""
        self._block.close()


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
@pytest.mark.parametrize(("family", "allowed"), [("knet", 1), ("queryinst", 6), ("mask2former", 10)])
def test_a_step_waits_no_more_often_than_it_has_to_match(family, allowed, kind, scenes, tmp_path):
    if family == "mask2former":
        pytest.importorskip("sp_fast.ops.deformable_attention")  # mmcv's own waits three times a level
    prefix = "model" if kind == "finetune" else "model.detector"
    options = ["custom_hooks.1.type=CountWaitsHook", "default_hooks.logger.interval=50"]
    options += ["train_cfg.max_iters=4"]
    options += ["train_cfg.val_first=False", "train_cfg.val_interval=50"] if kind == "finetune" else []
    stages = [f"{prefix}.{one}" for one in STAGES[family]]
    result = run(scenes, tmp_path, f"{family}_r50", kind, *options, *stages)
    assert result.status == (0 if kind == "pretrain" else None), result.printed[-3000:]
    *steps, _ = CountWaitsHook.counts  # the last one includes the end of the run
    assert len(steps) == 2
    for step in steps:
        assert 1 <= step.total() <= allowed, step
