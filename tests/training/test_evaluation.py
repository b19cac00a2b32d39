"""`sp-fast train --eval-only` and `--load-from` with any detector of mmdet; never with random weights."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from tests.training.runs import CONFIGS, finetune_options, train

pytest.importorskip("mmdet")

import sp_fast.models  # noqa: F401

# isort: split
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope

from sp_fast.configuration import set_num_classes
from tests.training.test_train import scores_of

# As mmdet has it, but with a smaller backbone, fewer channels and fewer proposals.
MASK_RCNN = """
_base_ = ['{configs}/_base_/finetune.py', '{configs}/_base_/runtime.py']
custom_imports = dict(imports=['sp_fast.models'])
model = __import__('sp_fast.configs').configs.model_of_mmdet('mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py')
model['backbone'].update(depth=18, init_cfg=None)
model['neck'].update(in_channels=[64, 128, 256, 512], out_channels=16)
model['rpn_head'].update(in_channels=16, feat_channels=16)
model['roi_head']['bbox_roi_extractor'].update(out_channels=16)
model['roi_head']['mask_roi_extractor'].update(out_channels=16)
model['roi_head']['bbox_head'].update(in_channels=16, fc_out_channels=32)
model['roi_head']['mask_head'].update(in_channels=16, conv_out_channels=16)
model['train_cfg']['rpn_proposal'].update(max_per_img=20)
model['train_cfg']['rcnn']['sampler'].update(num=20)
model['test_cfg']['rpn'].update(max_per_img=20)
model['test_cfg']['rcnn'].update(max_per_img=4)
pipeline = [
    dict(type='ReadImage'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackInstances'),
]
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(pipeline=pipeline)
)
test_pipeline = [dict(type='ReadImage'), dict(type='Resize', scale=(64, 64)), dict(type='PackInstances')]
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=4, val_interval=4)
default_hooks = dict(logger=dict(interval=1))
"""
CLASSES = 8  # of the synthetic scenes


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "mask_rcnn.py"
    path.write_text(MASK_RCNN.format(configs=CONFIGS))
    return path


@pytest.fixture(scope="module")
def checkpoint(config, tmp_path_factory):
    """A checkpoint of a Mask R-CNN with random weights."""

    def save(name, classes, meta=None, without=()):
        model = copy.deepcopy(Config.fromfile(config).model)
        set_num_classes(model, classes)
        with DefaultScope.overwrite_default_scope("mmdet"):
            state = MODELS.build(model).state_dict()
        kept = {key: value for key, value in state.items() if not key.startswith(tuple(without))}
        torch.save({"state_dict": kept, "meta": meta or {}}, folder / name)
        return folder / name

    folder = tmp_path_factory.mktemp("checkpoints")
    return save


def test_a_detector_of_another_family_is_evaluated(scenes, config, checkpoint, tmp_path):
    weights = checkpoint("whole.pth", CLASSES)
    result = train(
        *(config, *finetune_options(scenes), "--load-from", weights, "--eval-only"),
        *("--work-dir", tmp_path / "run"),
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert 0 <= scores_of(tmp_path / "run")["coco/segm_mAP"] <= 1


def test_a_detector_of_another_family_is_fine_tuned_on_other_classes(scenes, config, checkpoint, tmp_path):
    weights = checkpoint("80.pth", 80)
    result = train(
        *(config, *finetune_options(scenes), "--load-from", weights, "--epochs", 1),
        *("--work-dir", tmp_path / "run"),
    )
    assert result.returncode == 0, result.stderr[-3000:]
    log = result.stdout + result.stderr
    for head in ("bbox_head.fc_cls", "bbox_head.fc_reg", "mask_head.conv_logits"):
        assert f"roi_head.{head}.weight (file [" in log  # told, since they stay random


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(classes=CLASSES, without=["roi_head.mask_head.conv_logits."]), "2 missing: roi_head.mask_head"),
        (dict(classes=80), "of another shape: roi_head.bbox_head.fc_cls.bias (file [81], model [9])"),
        (
            dict(classes=CLASSES, meta={"dataset_meta": {"classes": list("abcdefgh")}}),
            "got one of a, b, c, d, e, f, g, h",
        ),
    ],
)
def test_nothing_random_is_evaluated(scenes, config, checkpoint, tmp_path, options, words):
    weights = checkpoint("other.pth", **options)
    result = train(
        *(config, *finetune_options(scenes), "--load-from", weights, "--eval-only"),
        *("--work-dir", tmp_path / "run"),
    )
    assert result.returncode == 2, result.stderr[-3000:]
    assert words in result.stderr
    assert "segm_mAP" not in result.stdout + result.stderr
    assert not (tmp_path / "run").exists()


def test_eval_only_needs_a_checkpoint(scenes, config, tmp_path):
    result = train(config, *finetune_options(scenes), "--eval-only", "--work-dir", tmp_path / "run")
    assert result.returncode == 2
    assert "--eval-only: expected the checkpoint to evaluate in --load-from, got none" in result.stderr


def test_the_scenes_have_so_many_classes(scenes):
    assert len(json.loads((scenes / "labelled.json").read_text())["categories"]) == CLASSES
