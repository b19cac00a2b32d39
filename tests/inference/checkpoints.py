"""Checkpoints of narrow models, as mmengine's runner writes them."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from sp_fast.configs import find_config
from sp_fast.configuration import set_num_classes
from tests.pretraining.families import NARROW, build_plain

CLASSES = ("disc", "box", "ring")
_CONFIGS: dict[str, Config] = {}


def in_mmdet() -> AbstractContextManager:
    """Within its block, mmdet's registry is the default one."""
    return DefaultScope.overwrite_default_scope("mmdet")


def finetuning_config(family: str, scale: tuple[int, int] = (96, 64)) -> Config:
    """The shipped fine-tuning config of a family, with a narrow model and small images."""
    if family not in _CONFIGS:
        _CONFIGS[family] = Config.fromfile(find_config(f"{family}_r50/finetune"))
    cfg = copy.deepcopy(_CONFIGS[family])
    cfg.merge_from_dict({f"model.{name}": value for name, value in NARROW[family].items()})
    set_num_classes(cfg.model, len(CLASSES))
    cfg.test_dataloader.dataset.pipeline[1].scale = scale
    return cfg


def checkpoint_of(family: str, **changes: object) -> dict:
    """A checkpoint of random weights; `changes` replaces entries of its meta information."""
    meta = dict(cfg=finetuning_config(family).pretty_text, dataset_meta=dict(classes=CLASSES), epoch=1)
    with in_mmdet():
        state = build_plain(family, len(CLASSES)).state_dict()
    return dict(meta={**meta, **changes}, state_dict=state)


def save(content: dict, path: Path) -> Path:
    """Writes a checkpoint."""
    torch.save(content, path)
    return path
