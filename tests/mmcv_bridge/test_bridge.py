"""The bridged ops against torchvision and their definitions, and mmdet's models on top of them."""

import copy
import importlib
import itertools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch.autograd import gradcheck

from sp_fast.mmcv_bridge import install, ops

# isort: split
import mmcv
import mmcv.ops as mmcv_ops
import mmdet
from mmcv.ops import multi_scale_deform_attn
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.structures import InstanceData

pytestmark = pytest.mark.skipif(
    not str(sys.modules["mmcv._ext"].__spec__.origin).startswith("sp_fast"),
    reason="a compiled mmcv is installed",
)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def random_boxes(count, size=20.0):
    corners = torch.rand(count, 2, 2, dtype=torch.float64) * size
    return torch.cat([corners.amin(1), corners.amax(1) + 0.1], dim=1)


def random_rois(count, images, size=20.0):
    image = torch.randint(images, (count, 1), dtype=torch.float64)
    return torch.cat([image, random_boxes(count, size)], dim=1)


@pytest.mark.parametrize("offset", [0, 1])
def test_nms(offset):
    boxes, scores = random_boxes(60).float(), torch.rand(60)
    dets, kept = mmcv_ops.nms(boxes, scores, 0.3, offset=offset)
    iou = torchvision.ops.box_iou(*[boxes + torch.tensor([0, 0, offset, offset])] * 2)
    expected: list[int] = []
    for index in scores.argsort(descending=True).tolist():
        if all(iou[index, other] <= 0.3 for other in expected):
            expected.append(index)
    assert kept.tolist() == expected
    assert 1 < len(expected) < 60
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[kept])


def test_nms_of_half_and_of_no_boxes():
    boxes, scores = random_boxes(20).bfloat16(), torch.rand(20).bfloat16()
    kept = mmcv_ops.nms(boxes, scores, 0.3)[1]
    assert torch.equal(kept, torchvision.ops.nms(boxes.float(), scores.float(), 0.3))
    assert mmcv_ops.nms(boxes[:0], scores[:0], 0.3)[1].shape == (0,)


@pytest.mark.parametrize(("aligned", "ratio"), list(itertools.product([True, False], [0, 2])))
def test_roi_align(aligned, ratio):
    features, rois = torch.rand(2, 3, 12, 10, dtype=torch.float64), random_rois(5, 2)
    expected = torchvision.ops.roi_align(features, rois, (3, 2), 0.5, ratio, aligned)
    pooled = mmcv_ops.roi_align(features, rois, (3, 2), 0.5, ratio, "avg", aligned)
    torch.testing.assert_close(pooled, expected, rtol=0, atol=0)
    small = features[:, :1, :6, :5].contiguous().requires_grad_()
    assert gradcheck(lambda x: mmcv_ops.roi_align(x, rois * 0.5, (2, 2), 0.5, ratio, "avg", aligned), small)


def test_roi_align_of_half_and_of_no_rois():
    features, rois = torch.rand(1, 2, 8, 8), random_rois(4, 1).float()
    pooled = mmcv_ops.roi_align(features.bfloat16(), rois.bfloat16(), 2)
    expected = torchvision.ops.roi_align(
        features.bfloat16().float(), rois.bfloat16().float(), 2, aligned=True
    )
    assert torch.equal(pooled, expected.bfloat16())
    assert mmcv_ops.roi_align(features, rois[:0], (7, 7)).shape == (0, 2, 7, 7)
    with pytest.raises(NotImplementedError, match="pool_mode='max'"):
        mmcv_ops.roi_align(features, rois, 2, 1.0, 0, "max")


def test_ms_deform_attn():
    """At the centres of cells attention is a weighted sum of values; elsewhere the gradient is checked."""
    shapes = torch.tensor([[4, 3], [2, 2]])
    starts = torch.tensor([0, 12])
    heads, points, queries, channels = 2, 3, 5, 4
    value = torch.randn(1, 16, heads, channels, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(1, queries, heads, 2, points, dtype=torch.float64, requires_grad=True)
    cell = torch.rand(1, queries, heads, 2, points, 2) * shapes.flip(1)[:, None]
    centres = ((cell.floor() + 0.5) / shapes.flip(1)[:, None]).double()

    index = starts[:, None] + cell[..., 1].long() * shapes[:, None, 1] + cell[..., 0].long()
    head = torch.arange(heads)[:, None, None]
    expected = (value[0][index[0], head] * weights[0, ..., None]).sum((2, 3)).flatten(1)[None]
    attended = MultiScaleDeformableAttnFunction.apply(value, shapes, starts, centres, weights, 64)
    torch.testing.assert_close(attended, expected)

    locations = torch.rand_like(centres).requires_grad_()
    assert gradcheck(
        lambda v, loc, w: MultiScaleDeformableAttnFunction.apply(v, shapes, starts, loc, w, 64),
        (value, locations, weights),
        fast_mode=True,
    )


def test_ms_deform_attn_keeps_the_precision_of_locations():
    """bfloat16 would move points of a map 200 cells wide by up to 0.4 cells."""
    value = torch.arange(-150.0, 50.0).view(1, 200, 1, 1).bfloat16()
    locations = torch.tensor([150.4, 0.5]).div(torch.tensor([200, 1])).view(1, 1, 1, 1, 1, 2)
    inputs = torch.tensor([[1, 200]]), torch.tensor([0]), locations, torch.ones(1, 1, 1, 1, 1)
    attended = MultiScaleDeformableAttnFunction.apply(value, *inputs, 64)
    assert attended.dtype == torch.bfloat16
    torch.testing.assert_close(attended.float(), torch.full((1, 1, 1), -0.1), rtol=0, atol=1e-3)


def test_attention_on_the_cpu_is_the_op():
    from sp_fast.mmcv_bridge import deformable

    calls = multi_scale_deform_attn.multi_scale_deformable_attn_pytorch
    assert calls is deformable.attend
    shapes = [(4, 3), (2, 2)]
    inputs = torch.randn(1, 16, 2, 4), torch.rand(1, 5, 2, 2, 3, 2), torch.rand(1, 5, 2, 2, 3)
    of_list = calls(inputs[0], shapes, *inputs[1:])
    assert torch.equal(of_list, calls(inputs[0], torch.tensor(shapes), *inputs[1:]))


@pytest.mark.parametrize("gamma", [2.0, 0.5])
def test_sigmoid_focal_loss(gamma):
    logits = (3 * torch.randn(6, 4, dtype=torch.float64)).requires_grad_()
    target = torch.tensor([0, 3, 4, 1, 4, 2])  # 4: background
    one_hot = torch.nn.functional.one_hot(target, 5)[:, :4].double()
    expected = torchvision.ops.sigmoid_focal_loss(logits, one_hot, alpha=0.3, gamma=gamma, reduction="none")
    loss = mmcv_ops.sigmoid_focal_loss(logits, target, gamma, 0.3, None, "none")
    torch.testing.assert_close(loss, expected)
    weight = torch.tensor([1.0, 2, 3, 4], dtype=torch.float64)
    weighted = mmcv_ops.sigmoid_focal_loss(logits, target, gamma, 0.3, weight, "none")
    torch.testing.assert_close(weighted, expected * torch.tensor([1.0, 4, 1, 2, 1, 3])[:, None])
    for reduction in ("mean", "sum"):
        assert gradcheck(
            lambda x, r=reduction: mmcv_ops.sigmoid_focal_loss(x, target, gamma, 0.3, weight, r), logits
        )


def test_sigmoid_focal_loss_of_large_logits():
    logits = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    loss = mmcv_ops.sigmoid_focal_loss(logits, torch.tensor([0]), 2.0, 0.25, None, "sum")
    loss.backward()
    torch.testing.assert_close(loss, torch.tensor(0.25 * 200 + 0.75 * 200))
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.25, 0.75]]))


def test_unavailable_ops_give_their_name():
    with pytest.raises(NotImplementedError, match=r"'carafe_forward'.*full mmcv 2\.1\.0"):
        mmcv_ops.carafe(torch.rand(1, 4, 4, 4), torch.rand(1, 25, 8, 8), 5, 1, 2)
    with pytest.raises(NotImplementedError, match="'nms_rotated'"):
        mmcv_ops.nms_rotated(torch.rand(2, 5), torch.rand(2), 0.5)
    with pytest.raises(NotImplementedError, match="'softnms'"):
        mmcv_ops.soft_nms(torch.rand(2, 4), torch.rand(2), 0.3)
    features, weight = torch.rand(1, 1, 4, 4), torch.rand(1, 1, 3, 3)
    with pytest.raises(NotImplementedError, match="'roi_pool_forward'"):
        mmcv_ops.roi_pool(features, torch.tensor([[0.0, 0, 0, 2, 2]]), 2)
    with pytest.raises(NotImplementedError, match="'deform_conv_forward'"):
        mmcv_ops.deform_conv2d(features, torch.zeros(1, 18, 2, 2), weight)
    mask = torch.ones(1, 9, 2, 2)
    with pytest.raises(NotImplementedError, match="'modulated_deform_conv_forward'"):
        mmcv_ops.modulated_deform_conv2d(
            features, torch.zeros(1, 18, 2, 2), mask, weight, None, 1, 0, 1, 1, 1
        )
    with pytest.raises(AttributeError):
        ops.unavailable_op("__path__")


def test_environment_report_and_mmengine_see_the_extension():
    from mmcv.utils import collect_env
    from mmcv.utils.ext_loader import check_ops_exist

    assert check_ops_exist()
    assert "torchvision" in collect_env()["MMCV Compiler"]


def test_install_is_idempotent():
    before = list(sys.meta_path)
    install()
    assert sys.meta_path == before


def test_compiled_mmcv_takes_precedence(tmp_path, monkeypatch):
    """A module `_ext` on mmcv's path stands in for the compiled one."""
    (tmp_path / "_ext.py").write_text("compiled = True")
    monkeypatch.delitem(sys.modules, "mmcv._ext")
    monkeypatch.setattr(mmcv, "__path__", [*mmcv.__path__, str(tmp_path)])
    install()
    extension = importlib.import_module("mmcv._ext")
    assert extension.compiled
    assert not hasattr(extension, "nms")


@pytest.fixture(scope="module")
def instances():
    """Two 64 px images with two objects each, as mmdet's data samples."""
    samples = []
    for shift in (0, 20):
        sample = DetDataSample(
            metainfo={"img_shape": (64, 64), "ori_shape": (64, 64), "batch_input_shape": (64, 64)}
            | {"pad_shape": (64, 64), "scale_factor": (1.0, 1.0), "img_id": shift}
        )
        masks = np.zeros((2, 64, 64), np.uint8)
        masks[0, 4 : 24 + shift, 4:40] = 1
        masks[1, 30:60, 20 + shift : 60] = 1
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[4.0, 4, 40, 24 + shift], [20 + shift, 30, 60, 60]]),
            labels=torch.tensor([0, 1]),
            masks=BitmapMasks(masks, 64, 64),
        )
        samples.append(sample)
    return samples


def slim(config):
    """Give the config of a model a small backbone without trained weights."""
    config.backbone = {
        "type": "ResNet",
        "depth": 18,
        "base_channels": 8,
        "stem_channels": 8,
        "norm_cfg": {"type": "BN"},
    }
    return config


def mmdet_config(name):
    return Config.fromfile(Path(mmdet.__file__).parent / ".mim" / "configs" / name)


CHANNELS = [8, 16, 32, 64]


def mask_rcnn():
    model = slim(mmdet_config("_base_/models/mask-rcnn_r50_fpn.py").model)
    model.neck.update(in_channels=CHANNELS, out_channels=8)
    model.rpn_head.update(in_channels=8, feat_channels=8)
    for extractor in (model.roi_head.bbox_roi_extractor, model.roi_head.mask_roi_extractor):
        extractor.out_channels = 8
    model.roi_head.bbox_head.update(in_channels=8, fc_out_channels=16, num_classes=2)
    model.roi_head.mask_head.update(in_channels=8, conv_out_channels=8, num_convs=1, num_classes=2)
    return model


def solov2():
    model = slim(mmdet_config("solov2/solov2_r50_fpn_1x_coco.py").model)
    model.neck.update(in_channels=CHANNELS, out_channels=8)
    model.mask_head.update(in_channels=8, feat_channels=8, stacked_convs=1, num_classes=2)
    model.mask_head.mask_feature_head.update(feat_channels=8, out_channels=8)
    model.mask_head.mask_feature_head.norm_cfg.num_groups = 2
    model.mask_head.norm_cfg = {"type": "GN", "num_groups": 2}
    return model


def mask2former():
    model = slim(mmdet_config("mask2former/mask2former_r50_8xb2-lsj-50e_coco.py").model)
    head = model.panoptic_head
    head.update(in_channels=CHANNELS, feat_channels=32, out_channels=32, num_queries=6)
    head.update(num_things_classes=2, num_stuff_classes=0)
    head.loss_cls.class_weight = [1.0, 1.0, 0.1]
    layers = head.pixel_decoder.encoder
    layers.num_layers = 1
    layers.layer_cfg.self_attn_cfg.update(embed_dims=32, num_heads=2)
    layers.layer_cfg.ffn_cfg.update(embed_dims=32, feedforward_channels=32)
    head.pixel_decoder.positional_encoding.num_feats = 16
    head.pixel_decoder.norm_cfg.num_groups = 8
    head.positional_encoding.num_feats = 16
    decoder = head.transformer_decoder
    decoder.num_layers = 2
    decoder.layer_cfg.self_attn_cfg.update(embed_dims=32, num_heads=2)
    decoder.layer_cfg.cross_attn_cfg.update(embed_dims=32, num_heads=2)
    decoder.layer_cfg.ffn_cfg.update(embed_dims=32, feedforward_channels=32)
    model.panoptic_fusion_head.update(num_things_classes=2, num_stuff_classes=0)
    model.train_cfg.num_points = 64
    model.test_cfg.update(max_per_image=5, panoptic_on=False, instance_on=True)
    return model


@pytest.mark.parametrize("configuration", [mask_rcnn, solov2, mask2former])
def test_mmdet_trains_and_predicts(configuration, instances):
    register_all_modules(init_default_scope=False)
    model = MODELS.build(configuration())
    images = torch.rand(2, 3, 64, 64)
    losses = model.loss(images, copy.deepcopy(instances))
    total, _ = model.parse_losses(losses)
    assert total.isfinite()
    total.backward()
    for name in ("backbone.conv1", "backbone.layer4.1.conv2"):
        assert model.get_submodule(name).weight.grad.abs().sum() > 0, name
    predictions = model.eval().predict(images, copy.deepcopy(instances))
    assert len(predictions) == 2
    for prediction in predictions:
        found = prediction.pred_instances
        assert found.masks.shape[-2:] == (64, 64)
        assert len(found.masks) == len(found.scores) == len(found.labels)
