"""Small training runs for tests: a folder of scenes, configs on them, the command in its own process."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.distributed import TCPStore

from sp_fast.data.synthetic import SetOptions, make_set
from sp_fast.train import leave_processes, main, parse_arguments, prepare

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


def write_uneven(scenes: Path) -> None:
    """Five scenes, one of them with objects: uneven_masks.json with seeds, and uneven_labelled.json."""
    for name in ("masks", "labelled"):
        coco = json.loads((scenes / f"{name}.json").read_text())
        images = coco["images"][:5]
        objects = [one for one in coco["annotations"] if one["image_id"] == images[2]["id"]]
        (scenes / f"uneven_{name}.json").write_text(
            json.dumps({**coco, "images": images, "annotations": objects})
        )
    shutil.copy(scenes / "masks.seeds.safetensors", scenes / "uneven_masks.seeds.safetensors")


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
    """Runs the training command in a separate process; gives its exit status and output."""
    return _in_processes([{}], main, [*map(str, arguments)])[0]


def train_ranks(count: int, folder: Path, *arguments: object) -> None:
    """Trains in `count` processes; their weights are then in rank0.pth, rank1.pth, ... of `folder`."""
    run_ranks(count, _save_weights, str(folder), [*map(str, arguments)])


def run_ranks(count: int, function: Callable, *arguments: Any) -> None:
    """Calls a function in `count` processes, see `ranks_of`, which have to end well."""
    for finished in ranks_of(count, function, *arguments):
        assert finished.returncode == 0, finished.stderr[-3000:]


def ranks_of(count: int, function: Callable, *arguments: Any) -> list[Finished]:
    """Calls a function in `count` processes that find each other as those of torchrun do, without a GPU."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "WORLD_SIZE": str(count),
        "CUDA_VISIBLE_DEVICES": "",
    }
    ranks = [dict(shared, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(count)]
    return _in_processes(ranks, function, *arguments)


def _in_processes(environments: list[dict[str, str]], function: Callable, *arguments: Any) -> list[Finished]:
    """Calls a function in a process for each environment.

    The processes are forked from one that has imported mmdet, which takes longer than a small run.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sp_fast.train", "sp_fast.models", "sp_fast.mmdet_plugin.runner"])
    with tempfile.TemporaryDirectory() as folder:
        started = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("OMP_NUM_THREADS", "1")  # of the server, when it starts
            for number, environment in enumerate(environments):
                outputs = [str(Path(folder, f"{name}{number}")) for name in ("stdout", "stderr")]
                process = context.Process(target=_call, args=(environment, outputs, function, arguments))
                process.start()
                started.append((process, outputs))
        deadline = time.monotonic() + 240
        for process, _ in started:
            process.join(max(0.0, deadline - time.monotonic()))
        late = [process for process, _ in started if process.exitcode is None]
        for process in late:
            process.kill()
        assert not late, "still running after 240 seconds"
        return [
            Finished(process.exitcode, *(Path(output).read_text() for output in outputs))
            for process, outputs in started
        ]


def _call(environment: dict[str, str], outputs: list[str], function: Callable, arguments: tuple) -> None:
    for number, output in enumerate(outputs, start=1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), number)
    os.environ.update(environment)
    sys.exit(function(*arguments))


def _save_weights(folder: str, arguments: list[str]) -> None:
    runner = prepare(parse_arguments(arguments))
    runner.train()
    torch.save(runner.model.module.state_dict(), f"{folder}/rank{os.environ['RANK']}.pth")
    leave_processes()
