"""Training steps of the demo, of mini-COCO and of the other families: CPU time."""

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
from sp_fast.configs import find_config
from sp_fast.mmdet_plugin.runner import Runner
from sp_fast.proposals.store import seeds_path

_STUDY = Path(sp_fast.__file__).parents[1] / "studies" / "mini_coco" / "configs"


class Training(NamedTuple):
    """A training whose steps are measured, at the longer side `size` of images and `batch` of them a step."""

    title: str
    family: str
    config: str
    size: int
    batch: int
    channels: int  # of the seeds
    masks: int  # per image, as many as the preset `paper` finds
    steps: int  # as many as one of the slowest training takes
    stored: bool = False  # whether the maps of the frozen backbone come from memory


_MINI_COCO = str(_STUDY / "mobilenet_v2_64_pretrain.py")
TRAININGS = {
    "demo": Training("demo", "K-Net", "demo/pretrain", 128, 8, 64, 10, 12),
    "mini_coco": Training("mini-COCO, kept maps", "K-Net", _MINI_COCO, 160, 16, 320, 20, 8, stored=True),
    "queryinst": Training("QueryInst R50", "QueryInst", "pretrain/queryinst_r50", 160, 2, 2048, 20, 1),
    "mask2former": Training(
        "Mask2Former R50", "Mask2Former", "pretrain/mask2former_r50", 160, 2, 2048, 20, 2
    ),
}
_GOAL = 1.25  # times as fast as before


class _TimesHook(Hook):
    """Takes the CPU time at the end of each step, after all other hooks."""

    priority = "LOWEST"

    def __init__(self) -> None:
        self.times: list[float] = []

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self.times.append(1e3 * time.process_time())


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
    if training.stored:
        config.custom_hooks.append(dict(type="StoredFeaturesHook"))
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


def runner_of(training: Training, task: Task, steps: int) -> Runner:
    """The training's runner, on a set of its own."""
    cv2.setNumThreads(1)
    write_set(
        task.folder,
        2 * training.batch,
        photographs=task.photographs,
        channels=training.channels,
        masks=training.masks,
    )
    return Runner.from_cfg(_config(training, task, steps))


def measure(name: str, task: Task) -> list[Row]:
    """CPU time of a step with its images' loading; the first one warms up."""
    training = TRAININGS[name]
    runner, hook = runner_of(training, task, training.steps * task.sizes.steps + 1), _TimesHook()
    runner.register_hook(hook)
    runner.train()
    between = [end - start for start, end in pairwise(hook.times)]
    what = f"{training.title}, {training.batch} x {training.size} px"
    group = "Training step, loading included, ms"
    return [Row(group, what, statistics.median(between), times=_GOAL)]


PARTS = {f"step_{name}": partial(measure, name) for name in TRAININGS}
