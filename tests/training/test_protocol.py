"""The paper's settings in the shipped configs: data, batch, optimiser, learning rates, augmentation."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

pytest.importorskip("mmdet")

import sp_fast.models  # noqa: F401

# isort: split
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope
from torch import nn

from sp_fast.configs import config_names, find_config
from sp_fast.configuration import default_folder
from sp_fast.mmdet_plugin.hooks import EXPORTED_NAME
from tests.pretraining.families import build_plain

QUERY_MODELS = ("knet_r50", "queryinst_r50", "mask2former_r50")
BASELINES = ("mask_rcnn_r50", "solov2_r50")
GPUS = 8


class Schedule(NamedTuple):
    """Length, epochs of the drops, steps of the warm-up."""

    epochs: int
    drops: tuple[int, int]
    warmup: int = 1000


SCHEDULES = {
    "pretrain": Schedule(12, (8, 11)),
    "pretrain_official": Schedule(12, (8, 11)),
    "pretrain_shared": Schedule(12, (8, 11)),
    "finetune": Schedule(48, (36, 44)),
    "finetune_coco_5": Schedule(92, (72, 88)),
    "finetune_coco": Schedule(12, (8, 11)),
    "finetune_cityscapes": Schedule(24, (16, 22)),
    "finetune_ctw1500": Schedule(96, (75, 92), 100),
    "finetune_ctw1500_sp": Schedule(20, (12, 18), 100),
}
OTHERS = {
    "queryinst_r50/finetune_cityscapes": Schedule(24, (18, 22)),
    "queryinst_r50/finetune_ctw1500": Schedule(80, (60, 72), 100),
    "mask2former_r50/finetune_ctw1500": Schedule(80, (60, 72), 100),
}
# Of the backbone's learning rate, and the largest norm of a gradient in pre-training and in fine-tuning.
BACKBONE_RATE = {"knet_r50": 0.25, "queryinst_r50": 0.1, "mask2former_r50": 0.1}
CLIPPING = {
    "knet_r50": (1, 4),
    "queryinst_r50": (0.1, 0.1),
    "mask2former_r50": (0.01, 0.01),
    "mask_rcnn_r50": (None, None),
    "solov2_r50": (None, 35),
}
DATA_SETS = ("", "_coco_5", "_coco", "_cityscapes", "_ctw1500")
NAMES = [
    *(f"{model}/finetune{data}" for model in (*QUERY_MODELS, *BASELINES) for data in DATA_SETS),
    *(f"{model}/finetune_ctw1500_sp" for model in QUERY_MODELS[1:]),
    *(f"{model}/pretrain" for model in QUERY_MODELS),
    "knet_r50/pretrain_official",
    "knet_r50/pretrain_shared",
]


@functools.cache
def config(name: str) -> Config:
    return Config.fromfile(find_config(name))


@functools.cache
def detector(model: str) -> nn.Module:
    """A narrow detector of a model's family."""
    with DefaultScope.overwrite_default_scope("mmdet"):
        return build_plain(model.removesuffix("_r50"))


def training_set(name: str) -> Config:
    """The data set that a config trains on, without repetition."""
    dataset = config(name).train_dataloader.dataset
    return dataset.get("dataset", dataset)


def test_names_follow_from_models_and_data_sets():
    others = {"demo/finetune", "demo/pretrain", "knet_mobilenet_v2/finetune", "knet_mobilenet_v2/pretrain"}
    assert {name for name in config_names() if not name.startswith("fit/")} == {*NAMES, *others}
    assert find_config("knet_r50/finetune_coco_5").stem == "knet_r50_coco_5"
    assert find_config("mask_rcnn_r50/finetune.py").stem == "mask_rcnn_r50"
    with pytest.raises(FileNotFoundError, match=r"did you mean solov2_r50/finetune_ctw1500\?"):
        find_config("solov2_r50/finetune_ctw150")


def test_pretrained_weights_are_where_the_configs_say():
    told = []
    for name in NAMES:
        found = re.search(r"^# Start: --load-from (\S+)$", find_config(name).read_text(), re.MULTILINE)
        if found:
            told.append(name)
            assert Path(found[1]) == default_folder(f"{name.split('/')[0]}/pretrain") / EXPORTED_NAME
    assert len(told) == 15


@pytest.mark.parametrize("name", NAMES)
def test_learning_rate(name):
    """Learning rates without a factor: the warm-up's first and last step, and around each drop."""
    cfg = config(name)
    schedule = OTHERS.get(name, SCHEDULES[name.split("/")[1]])
    assert cfg.train_cfg.max_epochs == schedule.epochs
    peak = 0.02 if name.split("/")[0] in BASELINES else 1e-4
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=cfg.optim_wrapper.optimizer.lr)
    # A short epoch in which the warm-up still ends before the first drop.
    epoch = schedule.warmup // schedule.drops[0] + 2
    built = [
        PARAM_SCHEDULERS.build(dict(one), default_args=dict(optimizer=optimizer, epoch_length=epoch))
        for one in cfg.param_scheduler
    ]
    rates = []
    for _ in range(schedule.epochs * epoch):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for one in built:
            one.step()
    first, second = (drop * epoch for drop in schedule.drops)
    expected = {0: 0.001, schedule.warmup - 1: 1, schedule.warmup: 1}
    expected |= {first - 1: 1, first: 0.1, second - 1: 0.1, second: 0.01, len(rates) - 1: 0.01}
    assert {step: rates[step] / peak for step in expected} == pytest.approx(expected)
    middle = (schedule.warmup - 1) / 2
    assert rates[int(middle)] / peak == pytest.approx(0.001 + 0.999 * int(middle) / (2 * middle))


@pytest.mark.parametrize("name", NAMES)
def test_optimiser(name):
    model, kind = name.split("/")
    cfg = config(name).optim_wrapper
    plain = detector(model)
    wrapper = build_optim_wrapper(plain, cfg)
    clip = CLIPPING[model][kind.startswith("finetune")]
    assert (wrapper.clip_grad_kwargs or {}).get("max_norm") == clip
    if model in BASELINES:
        assert type(wrapper.optimizer) is torch.optim.SGD
        (group,) = wrapper.optimizer.param_groups
        assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.02, 0.9, 1e-4)
        return
    assert type(wrapper.optimizer) is torch.optim.AdamW
    names = {id(one): parameter for parameter, one in plain.named_parameters() if one.requires_grad}
    exempt = undecayed(plain) if model == "mask2former_r50" else set()
    groups = {names[id(one)]: group for group in wrapper.optimizer.param_groups for one in group["params"]}
    assert len(groups) == len(names)
    for one, group in groups.items():
        backbone = one.startswith("backbone.")
        assert group["lr"] == pytest.approx(1e-4 * (BACKBONE_RATE[model] if backbone else 1)), one
        assert group["weight_decay"] == (0 if one in exempt else 0.05), one


def undecayed(plain: nn.Module) -> set[str]:
    """Mask2Former's parameters without weight decay, by name: its queries and all norms."""
    embeddings = {f"panoptic_head.{one}.weight" for one in ("query_embed", "query_feat", "level_embed")}
    norms = [
        name for name, module in plain.named_modules() if isinstance(module, (nn.LayerNorm, nn.GroupNorm))
    ]
    return embeddings | {f"{name}.{one}" for name in norms for one in ("weight", "bias")}


@pytest.mark.parametrize("name", NAMES)
def test_batch(name):
    model, kind = name.split("/")
    batch = 16
    if model in QUERY_MODELS:
        batch = {"pretrain_official": 48}.get(kind, 32 if "ctw1500" in kind else 96)
    assert config(name).train_dataloader.batch_size * GPUS == batch
    repeated = config(name).train_dataloader.dataset.get("times", 1)
    assert repeated == (8 if "cityscapes" in kind else 1)


@pytest.mark.parametrize("name", [name for name in NAMES if "/finetune" in name])
def test_data_and_augmentation(name):
    model, kind = name.split("/")
    cfg, train = config(name), training_set(name)
    root, of = {
        "finetune_cityscapes": ("data/cityscapes/", "instancesonly_filtered_gtFine_{}.json"),
        "finetune_ctw1500": ("data/ctw1500/", "instances_{}.json"),
    }.get(kind.removesuffix("_sp"), ("data/coco/", "instances_{}.json"))
    parts = {
        "data/cityscapes/": ("train", "val", "leftImg8bit/train", "leftImg8bit/val"),
        "data/ctw1500/": ("training", "test", "imgs/training", "imgs/test"),
    }.get(root)
    if parts is None:
        share = {"finetune": ".10", "finetune_coco_5": ".5"}.get(kind, "")
        parts = (f"train2017{share}", "val2017", "train2017", "val2017")
    assert train.ann_file.startswith(root)
    assert train.ann_file.endswith("/" + of.format(parts[0]))
    assert train.images == root + parts[2]
    for loader, evaluator in ((cfg.val_dataloader, "val_evaluator"), (cfg.test_dataloader, "test_evaluator")):
        assert loader.dataset.images == root + parts[3]
        assert loader.dataset.ann_file.endswith("/" + of.format(parts[1]))
        assert {metric.ann_file for metric in cfg[evaluator]} == {loader.dataset.ann_file}
        assert loader.dataset.get("exif") == train.get("exif") == ("ignore" if "ctw" in kind else None)
    steps = [step.type for step in train.pipeline]
    assert steps[:2] == ["ReadImage", "LoadInstances"]
    assert "RandomFlip" in steps
    turned = ["RotateInstances", "TightBoxes"] if model in QUERY_MODELS else []
    assert [step for step in steps if step in ("RotateInstances", "TightBoxes")] == turned
    assert steps[-1 - len(turned) :] == [*turned, "PackInstances"]


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("knet_r50/finetune", [(1333, 800)], (1333, 800)),
        ("mask2former_r50/finetune", [(1024, 1024), (1024, 1024)], (1333, 800)),
        ("knet_r50/finetune_cityscapes", [[(2048, 800), (2048, 1024)]], (2048, 1024)),
        ("solov2_r50/finetune_cityscapes", [[(2048, 800), (2048, 1024)]], (2048, 1024)),
        ("mask2former_r50/finetune_cityscapes", [(1024, 1024), (1024, 1024)], (1333, 800)),
        ("knet_r50/finetune_ctw1500", [(1333, 800)], (1600, 1600)),
        ("mask_rcnn_r50/finetune_ctw1500", [(1333, 800)], (1333, 800)),
    ],
)
def test_sizes(name, train, test):
    steps = training_set(name).pipeline
    assert [step[key] for step in steps for key in ("scale", "crop_size") if key in step] == train
    for loader in (config(name).val_dataloader, config(name).test_dataloader):
        assert loader.dataset.pipeline[1].scale == test


def test_the_authors_pretraining():
    _, _, resize, flip, _ = training_set("knet_r50/pretrain_official").pipeline
    assert (resize.scale, resize.keep_ratio, flip.prob) == ((1333, 800), False, 0.1)
    assert config("knet_r50/pretrain_official").model.preset == "official"
