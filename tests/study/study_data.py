"""A small folder of synthetic scenes laid out as the study's data, and a narrow K-Net for it."""

import json
import shutil
from pathlib import Path

import sp_fast
from sp_fast.data.synthetic import SetOptions, make_set

CONFIGS = Path(sp_fast.__file__).parent / "configs"


def make_data(folder, labelled=12, size=64):
    made = make_set(
        folder / "made", SetOptions(size=size, unlabelled=6, labelled=labelled, validation=4, seed=3)
    )
    coco = folder / "coco_mini"
    (coco / "annotations").mkdir(parents=True)
    for split, source in (("train", "labelled"), ("val", "validation")):
        shutil.move(made / source, coco / split)
        shutil.move(made / f"{source}.json", coco / "annotations" / f"instances_{split}.json")
    shutil.move(made / "unlabelled", coco / "unlabeled")
    (folder / "bsds500").mkdir()
    for path in sorted((coco / "unlabeled").iterdir())[4:]:
        shutil.move(path, folder / "bsds500" / path.name)
    shutil.rmtree(made)
    return folder


def write_config(path):
    """A tenth of the demo's K-Net, which takes no weights."""
    base = CONFIGS / "_base_" / "knet_demo.py"
    study = CONFIGS / "study" / "_study.py"
    path.write_text(
        f"""
_base_ = [{json.dumps(str(base))}, {json.dumps(str(study))}]
title = 'a narrow K-Net'
frozen_stages = 4
proposals = dict(backbone='random')
model = dict(
    backbone=dict(base_channels=4),
    neck=dict(in_channels=[4, 8, 16, 32], out_channels=16),
    rpn_head=dict(
        num_proposals=8, in_channels=16, out_channels=16, norm_cfg=dict(num_groups=4),
        localization_fpn=dict(
            in_channels=16, feat_channels=16, out_channels=16, norm_cfg=dict(num_groups=4),
            positional_encoding=dict(num_feats=8)),
    ),
    roi_head=dict(mask_head=dict(in_channels=16, num_heads=2, feedforward_channels=32)),
)
pretrain = dict(batch_size=4)
finetune = dict(batch_size=4)
"""
    )
    return path
