"""How often the host would wait for a GPU in a training step, counted on the CPU; see counted_device.py."""

from __future__ import annotations

import contextlib
from collections import Counter
from functools import partial
from typing import Any

from mmengine.hooks import Hook

from benchmarks.counted_device import counting, move, register
from benchmarks.pipeline.rows import Row, Task
from benchmarks.pipeline.training import TRAININGS, Training, runner_of

GOALS = {"mini_coco": 1, "queryinst": 6, "mask2former": 10}


class _CountHook(Hook):
    """Moves the model to the counted device; `found` are the waits from the start of a step to the next."""

    priority = "HIGHEST"

    def __init__(self) -> None:
        self.found: list[Counter[str]] = []
        self._block = contextlib.ExitStack()

    def before_train(self, runner: Any) -> None:
        """Moves the model."""
        move(runner.model)

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Begins the next count."""
        self._block.close()
        self.found.append(self._block.enter_context(counting()))

    def after_train(self, runner: Any) -> None:
        """Ends the last count."""
        self._block.close()


def measure(name: str, task: Task) -> list[Row]:
    """Waits of the second of three steps: constants are on the device then."""
    register()  # before PyTorch's first backward pass
    training: Training = TRAININGS[name]._replace(size=96, batch=2, stored=False)
    runner, hook = runner_of(training, task, steps=3), _CountHook()
    runner.register_hook(hook)
    runner.train()
    what = f"{training.family}, {training.batch} images"
    return [Row("Waits for the GPU in a step", what, hook.found[1].total(), goal=GOALS[name])]


PARTS = {f"waits_{name}": partial(measure, name) for name in GOALS}
