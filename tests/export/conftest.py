"""A checkpoint of a tiny K-Net whose random weights give scores and masks of all kinds."""

import pytest

pytest.importorskip("mmdet")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope

from sp_fast.export.families import segmenter
from sp_fast.export.formats import trace, write_onnx, write_program
from sp_fast.export.model import image_scale
from sp_fast.inference.torch_model import TorchModel
from tests.knet.model import knet_config

CLASSES = ("disc", "box", "star")
SCALE = (128, 96)


def config_of(model, scale=SCALE):
    resize = dict(type="Resize", scale=scale, keep_ratio=True)
    pipeline = [dict(type="ReadImage"), resize, dict(type="PackInstances")]
    return Config(dict(model=model, test_dataloader=dict(dataset=dict(pipeline=pipeline))))


def save_checkpoint(detector, config, path, classes=CLASSES):
    meta = dict(cfg=config.pretty_text, dataset_meta=dict(classes=classes))
    torch.save(dict(state_dict=detector.state_dict(), meta=meta), path)
    return path


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """Path of the checkpoint."""
    model = knet_config(num_stages=1)
    model["data_preprocessor"] |= dict(mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4], bgr_to_rgb=True)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        detector = MODELS.build(model)
    for head in detector.roi_head.mask_head:
        torch.nn.init.normal_(head.fc_mask.weight, std=1.0)
        torch.nn.init.normal_(head.fc_cls.weight, std=0.5)
        torch.nn.init.zeros_(head.fc_cls.bias)
    return save_checkpoint(detector, config_of(model), tmp_path_factory.mktemp("model") / "tiny.pth")


@pytest.fixture(scope="session")
def model(checkpoint):
    return TorchModel.from_checkpoint(checkpoint)


@pytest.fixture(scope="session")
def traced(model):
    """The module that is exported, and its program; tracing takes seconds."""
    module = segmenter(model.detector, image_scale(model.resize))
    return module, trace(module)


@pytest.fixture(scope="session")
def onnx_file(traced, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "tiny.onnx"
    write_onnx(*traced, path, CLASSES, opset=None)
    return path


@pytest.fixture(scope="session")
def program_file(traced, tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "tiny.pt2"
    write_program(*traced, path, CLASSES)
    return path
