"""The command's options reach the data sets inside mmengine's wrappers of data sets."""

from __future__ import annotations

import pytest

from tests.training.runs import CHANNELS, finetune_options, pretrain_options, write_config

pytest.importorskip("mmdet")

import sp_fast.models  # noqa: F401

# isort: split
from sp_fast.train import load_config, parse_arguments

REPEATED = """
repeated = _base_.train_dataloader.dataset
train_dataloader = dict(dataset=dict(_delete_=True, type='RepeatDataset', times=3, dataset=repeated))
"""
TWICE = """
one = dict(type='InstanceDataset', ann_file={train!r}, images={images!r})
other = dict(type='InstanceDataset', ann_file={val!r}, images={images!r})
train_dataloader = dict(dataset=dict(_delete_=True, type='ConcatDataset', datasets=[one, other]))
"""


@pytest.fixture
def load(tmp_path):
    """A config with `text` appended, after the command's options have changed it."""

    def load(kind, text, *arguments):
        base = write_config(tmp_path / "base.py", kind)
        path = tmp_path / "config.py"
        path.write_text(f"_base_ = [{str(base)!r}]\n{text}")
        return load_config(parse_arguments([str(path), *map(str, arguments)]))

    return load


def test_options_of_a_repeated_data_set(load, scenes):
    cfg = load("finetune", REPEATED, *finetune_options(scenes), "--cache", "ram")
    outer = cfg.train_dataloader.dataset
    assert (outer.type, outer.times) == ("RepeatDataset", 3)
    assert outer.dataset.images == str(scenes / "labelled")
    assert outer.dataset.ann_file == str(scenes / "labelled.json")
    assert outer.dataset.cache == cfg.val_dataloader.dataset.cache == "ram"
    assert not {"images", "ann_file", "cache", "metainfo"} & outer.keys()
    classes = outer.dataset.metainfo.classes
    assert cfg.val_dataloader.dataset.metainfo.classes == classes
    assert cfg.model.roi_head.mask_head.num_classes == len(classes) > 1


def test_class_agnostic_with_a_repeated_data_set(load, scenes):
    cfg = load("finetune", REPEATED, *finetune_options(scenes), "--class-agnostic")
    assert cfg.train_dataloader.dataset.dataset.class_agnostic
    assert "class_agnostic" not in cfg.train_dataloader.dataset
    assert cfg.model.roi_head.mask_head.num_classes == 1


def test_seeds_of_a_repeated_data_set(load, scenes):
    cfg = load("pretrain", REPEATED, *pretrain_options(scenes))
    assert cfg.train_dataloader.dataset.dataset.seeds == str(scenes / "masks.seeds.safetensors")
    assert cfg.model.supervision.seed_channels == CHANNELS


def test_data_sets_one_after_the_other(load, scenes):
    files = dict(train=str(scenes / "labelled.json"), val=str(scenes / "validation.json"))
    text = TWICE.format(images=str(scenes / "labelled"), **files)
    data = finetune_options(scenes)
    with pytest.raises(
        ValueError, match=r"--images: expected one data set in the config's train_dataloader, "
    ):
        load("finetune", text, *data)
    text = text.replace(files["val"], files["train"])
    cfg = load("finetune", text, *data[4:])
    one, other = cfg.train_dataloader.dataset.datasets
    assert one.metainfo == other.metainfo == cfg.val_dataloader.dataset.metainfo


def test_a_metric_without_a_list(load, scenes):
    text = """
metric = dict(_delete_=True, type='ClassAgnosticCocoMetric', ann_file='val.json')
val_evaluator = test_evaluator = metric
"""
    base = "_base_.val_evaluator = _base_.test_evaluator = None\n"
    for more in ([], ["--class-agnostic"]):
        cfg = load("finetune", base + text, *finetune_options(scenes), *more)
        for name in ("val_evaluator", "test_evaluator"):
            (metric,) = [cfg[name]] if isinstance(cfg[name], dict) else cfg[name]
            assert metric.ann_file == str(scenes / "validation.json")
