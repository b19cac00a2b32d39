"""Counts what the steps of a training would wait for on a GPU; see benchmarks/counted_device.py.

    python -m tests.training.count_waits FAMILY FOLDER

The whole command runs, on a narrow model with as many stages as the shipped one. A step is all between the
starts of two steps: the batch's way to the device, forward and backward pass, optimiser and hooks. The
device has to be registered before PyTorch's first backward pass, and stays for good: hence a process for it.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from benchmarks.counted_device import counting, move, register
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
        """Moves the model, and begins a count."""
        move(runner.model)
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


def main() -> None:
    """Prints the counts of each step by operation and place, for pre-training and for fine-tuning."""
    family, folder = sys.argv[1], Path(sys.argv[2])
    scenes, found = write_scenes(folder), {}
    register()
    for kind in ("pretrain", "finetune"):
        prefix = "model" if kind == "finetune" else "model.detector"
        options = ["custom_hooks.1.type=CountWaitsHook", "default_hooks.logger.interval=50"]
        options += ["train_cfg.max_iters=4"]
        options += ["train_cfg.val_first=False", "train_cfg.val_interval=50"] if kind == "finetune" else []
        stages = [f"{prefix}.{one}" for one in STAGES[family]]
        result = run(scenes, folder / kind, f"{family}_r50", kind, *options, *stages)
        assert result.status == (0 if kind == "pretrain" else None), result.printed[-3000:]
        found[kind] = CountWaitsHook.counts[:-1]  # the last one includes the end of the run
    print(json.dumps(found))


if __name__ == "__main__":
    main()
