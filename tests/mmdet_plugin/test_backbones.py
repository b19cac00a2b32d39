"""Backbones of detectors with torchvision's parameter names."""

import numpy as np
import torch

import sp_fast.models  # noqa: F401  (gives mmdet the ops it imports)

# isort: split
from mmdet.models.backbones import MobileNetV2

from sp_fast.mmdet_plugin.backbones import CaffeResNet50
from sp_fast.proposals import build_backbone
from sp_fast.weights import load_backbone_weights
from sp_fast.weights.layouts import mmdet_mobilenet_prefixes


def test_mmdet_names_of_mobilenet_are_mmdets():
    keys = {key.rsplit(".", 1)[0] + "." for key in MobileNetV2().state_dict()}
    assert keys == set(mmdet_mobilenet_prefixes())


def test_caffe_resnet_is_that_of_the_proposals_and_takes_weights_without_the_last_stage(tmp_path):
    proposals = build_backbone("resnet50", style="caffe", stage=3, seed=4)
    state = dict(proposals.body.state_dict())
    state["layer4.0.conv1.weight"] = torch.zeros(512, 1024, 1, 1)  # the published file has some of layer4
    torch.save(state, tmp_path / "partial.pth")
    student = CaffeResNet50(num_stages=3)
    report = load_backbone_weights(student, tmp_path / "partial.pth")
    assert not report.missing
    student.eval()
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, 64, 96), np.uint8))
    maps = student(proposals.normalize(pixels))
    assert [tuple(one.shape[1:]) for one in maps] == [(256, 16, 24), (512, 8, 12), (1024, 4, 6)]
    torch.testing.assert_close(maps[-1], proposals(proposals.normalize(pixels)))
