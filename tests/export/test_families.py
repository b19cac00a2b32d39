"""Mask2Former and QueryInst as they are written for export, against mmdet's own code."""

import numpy as np
import pytest

pytest.importorskip("mmdet")

import torch
from mmengine.registry import DefaultScope

from sp_fast.export.difference import difference
from sp_fast.export.families import segmenter
from sp_fast.export.model import image_scale, sample_images
from sp_fast.inference.instances import Instances
from sp_fast.inference.torch_model import TorchModel
from tests.inference.checkpoints import checkpoint_of, save


def with_margins(content):
    """Weights whose scores differ and, for QueryInst, whose boxes touch the image, as mmdet requires."""
    generator = torch.Generator().manual_seed(0)
    for name, value in content["state_dict"].items():
        if "fc_reg.weight" in name:
            value.normal_(std=0.02, generator=generator)
        if "fc_cls.weight" in name or "cls_embed.weight" in name:
            value.normal_(std=0.5, generator=generator)
    return content


@pytest.fixture(scope="module", params=["mask2former", "queryinst"])
def model(request, tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("family") / "model.pth"
    with DefaultScope.overwrite_default_scope("mmdet"):
        save(with_margins(checkpoint_of(request.param)), path)
    return TorchModel.from_checkpoint(path)


def test_equal_to_mmdet(model):
    exported = segmenter(model.detector, image_scale(model.resize))
    for image in sample_images(None):
        expected = model.predict(image, threshold=0.0)
        assert len(expected) >= 3
        pair = torch.from_numpy(np.stack([image[::-1], image]))
        with torch.no_grad():
            scores, labels, _, masks = (output[1].numpy() for output in exported(pair))
        assert difference(expected, Instances.from_masks(masks, scores, labels, model.classes)).tolerable
