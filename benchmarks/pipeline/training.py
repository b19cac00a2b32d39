"""Training steps of the demo, of mini-COCO and of the other families: CPU time, and host synchronisations."""

from __future__ import annotations

import statistics
import time
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import cv2

import sp_fast
import sp_fast.models

# isort: split
from mmengine.config import Config
from mmengine.hooks import Hook

from benchmarks.pipeline.image_set import write_set
from benchmarks.pipeline.rows import Row, Task
from benchmarks.pipeline.synchronisations import Synchronisations
from sp_fast.configs import find_config
from sp_fast.mmdet_plugin.runner import Runner
from sp_fast.proposals.store import seeds_path

_OBJECTS = 5  # per image
_STUDY = Path(sp_fast.__file__).parents[1] / "studies" / "mini_coco" / "configs"


class Training(NamedTuple):
    """A training whose steps are measured, at the longer side `size` of images and `batch` of them a step."""

    title: str
    config: str
    size: int
    batch: int
    channels: int  # of the seeds
    goal: int  # of synchronisations


TRAININGS = {
    "demo": Training("demo", "demo/pretrain", 128, 8, 64, 1),
    "mini_coco": Training("mini-COCO, K-Net", str(_STUDY / "mobilenet_v2_64_pretrain.py"), 160, 16, 320, 1),
    "queryinst": Training("QueryInst R50", "pretrain/queryinst_r50", 160, 2, 2048, 6),
    "mask2former": Training("Mask2Former R50", "pretrain/mask2former_r50", 160, 2, 2048, 10),
}


class _MeasureHook(Hook):
    """Takes the CPU time from step to step, loading included, and counts synchronisations in the last."""

    priority = "HIGHEST"

    def __init__(self, steps: int) -> None:
        self.counted = steps - 1
        self.times: list[float] = []
        self.modes = Synchronisations()

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if batch_idx == self.counted:
            self.modes.__enter__()


class _EndHook(Hook):
    """The end of each step for `_MeasureHook`, after all other hooks."""

    priority = "LOWEST"

    def __init__(self, measured: _MeasureHook) -> None:
        self.measured = measured

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if batch_idx == self.measured.counted:
            self.measured.modes.__exit__(None, None, None)
        self.measured.times.append(1e3 * time.process_time())


def _config(training: Training, task: Task, steps: int) -> Config:
    """The training's config on the set in the task's folder, for a few steps and without files."""
    path = training.config if training.config.endswith(".py") else find_config(training.config)
    config = Config.fromfile(path)
    annotations = task.folder / "masks.json"
    config.train_dataloader.update(batch_size=training.batch, num_workers=0, persistent_workers=False)
    dataset = config.train_dataloader.dataset
    dataset.update(
        ann_file=str(annotations), images=str(task.folder / "images"), seeds=str(seeds_path(annotations))
    )
    dataset.cache = "ram"
    for step in dataset.pipeline:
        if "scale" in step:
            step["scale"] = (training.size, training.size)
    config.train_cfg = dict(type="StepTrainLoop", max_iters=steps)
    config.val_cfg = config.val_dataloader = config.val_evaluator = None
    config.test_cfg = config.test_dataloader = config.test_evaluator = None
    config.param_scheduler = None
    config.default_hooks.pop("best", None)
    config.default_hooks.checkpoint = None  # without the name, mmengine has a hook of its own
    config.custom_hooks = [hook for hook in config.custom_hooks if hook["type"] != "ExportPretrainedHook"]
    config.work_dir = str(task.folder / "run")
    config.log_level = "ERROR"
    return config


def measure(name: str, task: Task) -> list[Row]:
    """CPU time of a step with its images' loading, and its synchronisations."""
    training = TRAININGS[name]
    cv2.setNumThreads(1)
    write_set(
        task.folder,
        2 * training.batch,
        photographs=task.photographs,
        channels=training.channels,
        masks=_OBJECTS,
    )
    steps = task.sizes.steps + 2  # the first warms up, the last is counted
    runner = Runner.from_cfg(_config(training, task, steps))
    hook = _MeasureHook(steps)
    runner.register_hook(hook)
    runner.register_hook(_EndHook(hook))
    runner.train()
    between = [end - start for start, end in pairwise(hook.times)]
    what = f"{training.title}, {training.batch} x {training.size} px"
    return [
        Row("Training step, loading included, ms", what, statistics.median(between[:-1])),
        Row("Host synchronisations of a step", what, sum(hook.modes.found.values()), goal=training.goal),
    ]


PARTS = {f"step_{name}": partial(measure, name) for name in TRAININGS}
