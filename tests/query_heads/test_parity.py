"""The batched heads against mmdet's own: the same losses, gradients and matchings for the same weights."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("mmdet")

import sp_fast.models  # noqa: F401

# isort: split
from mmdet.registry import MODELS

from sp_fast.query_heads import mask2former, queryinst
from tests.pretraining.families import KERNELS, batch, detector_config, prepared, total

CLASSES = 3
MMDETS = {
    "queryinst": {"rpn_head": "EmbeddingRPNHead", "roi_head": "SparseRoIHead"},
    "mask2former": {"panoptic_head": "Mask2FormerHead"},
}
COUNTS = [[2, 3], [0, 2], [0, 0], [KERNELS + 4, 1]]


def pair(family):
    """A detector with the batched heads, and one with mmdet's and the same weights."""
    models = []
    for own in (True, False):
        config = detector_config(family, num_classes=CLASSES)
        if not own:
            for head, name in MMDETS[family].items():
                config[head].type = name
            config.data_preprocessor.type = "DetDataPreprocessor"
            if family == "mask2former":
                config.panoptic_head.pixel_decoder.type = "MSDeformAttnPixelDecoder"
        models.append(MODELS.build(config).train())
    torch.manual_seed(0)
    models[0].init_weights()
    with torch.no_grad():
        for parameter in models[0].parameters():  # no class, box or mask like another one
            parameter.add_(0.02 * torch.randn_like(parameter))
    models[1].load_state_dict(models[0].state_dict())
    return models


def step(model, data):
    """Losses and gradients."""
    inputs, samples = prepared(model, data)
    generator = torch.Generator().manual_seed(3)
    for sample in samples:
        count = len(sample.gt_instances.labels)
        sample.gt_instances.labels = torch.randint(0, CLASSES, (count,), generator=generator)
    losses = model.loss(inputs, samples)
    total(losses).backward()
    return losses, {name: one.grad for name, one in model.named_parameters()}


@pytest.fixture
def same_points(monkeypatch):
    """Random points that are the same at every call, as the two draw them in another order."""
    fixed = torch.rand(4096, 2, generator=torch.Generator().manual_seed(5))

    def rand(*size, device=None):
        size = size[0] if isinstance(size[0], tuple) else size
        return fixed[: size[-2]].expand(*size).clone()

    monkeypatch.setattr(torch, "rand", rand)


@pytest.mark.parametrize("counts", COUNTS, ids=str)
@pytest.mark.parametrize("family", MMDETS)
def test_losses_and_gradients_are_those_of_mmdet(family, counts, same_points):
    own, theirs = (step(model, batch(counts)) for model in pair(family))
    assert own[0].keys() == theirs[0].keys()
    for name, value in theirs[0].items():
        torch.testing.assert_close(own[0][name].reshape(()), value.reshape(()), rtol=1e-5, atol=1e-6)
    assert own[1].keys() == theirs[1].keys()
    for name, value in theirs[1].items():
        assert (own[1][name] is None) == (value is None), name
        if value is not None:
            scale = value.abs().max().clamp(min=1e-3).item()
            torch.testing.assert_close(own[1][name], value, rtol=1e-4, atol=1e-4 * scale, msg=name)


@pytest.mark.parametrize("family", MMDETS)
def test_matchings_are_those_of_mmdet(family, same_points, monkeypatch):
    own, theirs = pair(family)
    found, expected = [], []
    module = queryinst if family == "queryinst" else mask2former
    match = module.match
    monkeypatch.setattr(module, "match", lambda *args: found.append(match(*args)) or found[-1])
    head = theirs.roi_head if family == "queryinst" else theirs.panoptic_head
    for assigner in head.bbox_assigner if family == "queryinst" else [head.assigner]:
        original = assigner.assign

        def record(*args, original=original, **kwargs):
            result = original(*args, **kwargs)
            expected.append(result.gt_inds - 1)
            return result

        assigner.assign = record
    step(own, batch([3, KERNELS + 2, 0]))
    step(theirs, batch([3, KERNELS + 2, 0]))
    gt = found[0].gt if family == "mask2former" else torch.stack([one.gt for one in found])
    assert torch.equal(gt.flatten(0, 1), torch.stack(expected))


def test_predictions_are_those_of_mmdet():
    for family in MMDETS:
        results = []
        for model in pair(family):
            model.eval()
            inputs, samples = prepared(model, batch([1, 2]))
            with torch.no_grad():
                results.append([one.pred_instances for one in model.predict(inputs, samples)])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one.scores, other.scores)
            torch.testing.assert_close(one.bboxes, other.bboxes)
            assert torch.equal(one.masks, other.masks)


def test_first_boxes_are_those_of_the_image_with_maps_in_bfloat16():
    head = MODELS.build(detector_config("queryinst", num_classes=CLASSES).rpn_head)
    head.init_weights()  # boxes of the whole image
    sample = SimpleNamespace(metainfo={"img_shape": (797, 1333)})
    (found,) = head._decode_init_proposals([torch.zeros(1, 8, 4, 4, dtype=torch.bfloat16)], [sample])
    assert found.bboxes.unique(dim=0).tolist() == [[0, 0, 1333, 797]]


def test_options_that_the_heads_do_not_know_are_named():
    model = pair("queryinst")[0]
    model.roi_head.bbox_head[0].bbox_coder.clip_border = True
    with pytest.raises(ValueError, match="bbox_coder: expected a DeltaXYWHBBoxCoder with clip_border=False"):
        step(model, batch([1]))
