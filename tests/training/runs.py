"""Small training runs for tests: a folder of scenes, configs on them, the command in its own process."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sp_fast.data.synthetic import SetOptions, make_set
from sp_fast.train import main

CONFIGS = Path(__file__).parents[2] / "sp_fast" / "configs"
TRAIN = Path(__file__).parents[2] / "sp_fast" / "train.py"
CHANNELS = 16

CONFIG = """
_base_ = ['{configs}/_base_/knet_demo.py', '{configs}/_base_/{kind}.py', '{configs}/_base_/runtime.py']
from_scratch = True
pipeline = [
    dict(type='ReadImage'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackInstances'),
]
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(pipeline=pipeline)
)
{rest}
param_scheduler = [_base_.param_scheduler[1]]
param_scheduler[0].update(end=4, milestones=[3])
default_hooks = dict(logger=dict(interval=1))
"""
PRETRAIN = """
model = dict(
    _delete_=True,
    type='SaliencyPromptPretrainer',
    detector=_base_.model,
    source='cached',
    supervision=dict(seed_channels=1),
)
train_cfg = dict(max_epochs=4)
"""
FINETUNE = """
test_pipeline = [dict(type='ReadImage'), dict(type='PackInstances')]
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=4, val_interval=4)
"""


def write_scenes(folder: Path, size: int = 64) -> Path:
    """A small synthetic set, and its labelled scenes again as class-agnostic masks with seeds."""
    made = make_set(folder, SetOptions(size=size, unlabelled=1, labelled=6, validation=3))
    coco = json.loads((made / "labelled.json").read_text())
    for row, annotation in enumerate(coco["annotations"]):
        annotation.update(seed_row=row, category_id=1)
    coco["categories"] = [{"id": 1, "name": "object"}]
    (made / "masks.json").write_text(json.dumps(coco))
    seeds = np.random.default_rng(0).normal(size=(len(coco["annotations"]), CHANNELS)).astype(np.float16)
    save_file({"seeds": torch.from_numpy(seeds)}, made / "masks.seeds.safetensors")
    return made


def write_config(path: Path, kind: str) -> Path:
    """A config of kind `pretrain` or `finetune`: 4 epochs of 3 steps."""
    path.write_text(
        CONFIG.format(configs=CONFIGS, kind=kind, rest=PRETRAIN if kind == "pretrain" else FINETUNE)
    )
    return path


def pretrain_options(scenes: Path) -> list[str]:
    """The data of a pre-training run."""
    return ["--images", str(scenes / "labelled"), "--annotations", str(scenes / "masks.json")]


def finetune_options(scenes: Path) -> list[str]:
    """The data of a fine-tuning run."""
    return [
        *("--images", str(scenes / "labelled"), "--annotations", str(scenes / "labelled.json")),
        *("--val-images", str(scenes / "validation"), "--val-annotations", str(scenes / "validation.json")),
    ]


def environment() -> dict[str, str]:
    """One thread a process: tests share the machine."""
    return dict(os.environ, OMP_NUM_THREADS="1")


class Finished(NamedTuple):
    """Exit status and output of a command."""

    returncode: int
    stdout: str
    stderr: str


def train(*arguments: object) -> Finished:
    """Runs the training command in a process of its own and gives its exit status and output.

    The process is forked from one that has imported mmdet, which takes longer than a small run.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sp_fast.train", "sp_fast.models", "sp_fast.mmdet_plugin.runner"])
    with tempfile.TemporaryDirectory() as folder:
        outputs = [str(Path(folder, name)) for name in ("stdout", "stderr")]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", "1")  # of the server, when it starts
            process = context.Process(target=_train, args=([*map(str, arguments)], *outputs))
            process.start()
        process.join(240)
        assert process.exitcode is not None, "still running after 240 seconds"
        return Finished(process.exitcode, *(Path(output).read_text() for output in outputs))


def _train(arguments: list[str], *outputs: str) -> None:
    for number, output in enumerate(outputs, start=1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), number)
    sys.exit(main(arguments))
