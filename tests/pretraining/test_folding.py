"""Folding prompts into K^0: the running mean, what is exported and what is predicted."""

import pytest
import torch

from sp_fast.configs import config_names, find_config
from sp_fast.pretraining import folding
from sp_fast.pretraining.folding import ReceivedPrompts
from tests.mmdet_plugin.step_runs import assert_same
from tests.pretraining.families import CHANNELS, FAMILIES, KERNELS, batch, build, losses_of, prepared
from tests.pretraining.families import build_plain as plain

# isort: split
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.registry import DefaultScope

FOLDS = ["mean", "kernel"]
# Prompts of two kernels with one channel, by image; the second image of three has none.
RECEIVED = torch.tensor([[[1.0], [2.0]], [[0.0], [0.0]], [[2.0], [4.0]]])


FOLDED = (
    "demo/pretrain",
    "fit/knet_mobilenet_v2_64_pretrain",
    "fit/knet_mobilenet_v2_pretrain",
    "fit/knet_r50_pretrain",
    "knet_mobilenet_v2/pretrain",
)


def test_the_configs_fold_the_mean_but_for_the_papers():
    pretrainings = [name for name in config_names() if "pretrain" in name]
    assert {*FOLDED, "knet_r50/pretrain", "mask2former_r50/pretrain"} < {*pretrainings}
    folded = {}
    for name in pretrainings:
        with DefaultScope.overwrite_default_scope("mmdet"):
            received = MODELS.build(Config.fromfile(find_config(name)).model).received
        if received is not None:
            folded[name] = len(received.mean)  # one for all kernels, or one for each
    assert folded == dict.fromkeys(FOLDED, 1)


@pytest.mark.parametrize(("fold", "first", "second"), [("kernel", [1, 2], [1.5, 5]), ("mean", [1.5], [3.25])])
def test_the_mean_of_known_prompts(fold, first, second):
    """Ten images with a mean of 1 and 2, then one with 2 and 8, which weighs 10 / (10 + 10)."""
    received = ReceivedPrompts(fold, 2, 1)
    received.update(torch.tensor([[[2.0], [4.0]], [[0.0], [0.0]]]).repeat(5, 1, 1))
    assert received.mean.flatten().tolist() == first
    received.update(torch.tensor([[[2.0], [8.0]]]))
    assert received.mean.flatten().tolist() == second
    assert received.images == 11


@pytest.mark.parametrize("steps", [100, 1000])
def test_the_mean_reaches_over_the_last_tenth_of_a_run_of_any_length(steps):
    received = ReceivedPrompts("mean", 1, 1)
    for step in range(1, steps + 1):
        received.update(torch.full((8, 1, 1), step / steps))
    assert received.mean.item() == pytest.approx(10 / 11, abs=0.002)


@pytest.mark.parametrize("family", FAMILIES)
def test_folded_kernels_are_the_decorated_kernels_on_average(family):
    """Over the images of a step, one of which has no prompt."""
    models = {fold: build(family, prompts=dict(fold=fold)) for fold in FOLDS}
    decorated = []
    inject = models["kernel"].injector.forward
    models["kernel"].injector.forward = lambda *args: decorated.append(inject(*args)) or decorated[-1]
    for model in models.values():
        losses_of(model, batch([3, 0, 2]))
    expected = decorated[0][0].mean(0).detach()  # [N, C]
    name = models["kernel"]._adapter.initial_kernels
    before = models["kernel"].detector.state_dict()[name].flatten(1)
    assert not torch.allclose(expected, before, atol=1e-2)
    exported = {fold: model.export()[name].flatten(1) for fold, model in models.items()}
    torch.testing.assert_close(exported["kernel"], expected, rtol=1e-4, atol=1e-5)
    shift = (expected - before).mean(0).expand(KERNELS, -1)
    torch.testing.assert_close(exported["mean"], before + shift, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_predicts_as_the_exported_model_and_trains_as_without(family):
    model, without = (build(family, prompts=dict(fold=fold)) for fold in ("kernel", "none"))
    data = batch([2, 3])
    for step in range(2):
        losses, expected = (losses_of(one, data, seed=step) for one in (model, without))
        assert all(torch.equal(value, expected[name]) for name, value in losses.items())
    own = model.detector.state_dict()
    exported = {**model.export(), **model.class_head()}
    changed = [name for name, value in exported.items() if not torch.equal(value, own[name])]
    assert changed == [model._adapter.initial_kernels]
    assert exported[changed[0]].shape == own[changed[0]].shape

    detector = plain(family, seed=1).eval()
    detector.load_state_dict(exported)
    inputs, samples = prepared(model, data)
    model.eval()
    with torch.no_grad():
        found, expected = (one._forward(inputs, samples) for one in (model, detector))
        unfolded = model.detector._forward(inputs, samples)
    assert_same(found, expected)
    with pytest.raises(AssertionError):
        assert_same(found, unfolded)
    assert torch.equal(model.detector.state_dict()[changed[0]], own[changed[0]])


def test_only_training_changes_the_mean_and_only_folded_prompts_have_one():
    model = build("knet", prompts=dict(fold="kernel")).eval()
    with torch.no_grad():
        losses_of(model, batch([2]))
    assert not model.received.mean.any()
    assert model.received.mean.shape == (KERNELS, CHANNELS)
    for prompts in ({}, dict(fold="kernel", strategy="none")):
        assert not any(name.startswith("received") for name in build("knet", prompts=prompts).state_dict())


def test_processes_have_the_mean_of_all_images(monkeypatch):
    """One has two images, the other one; what `all_reduce` adds up is sent before and received afterwards."""
    shares, sent = (RECEIVED[:2], RECEIVED[2:]), []
    monkeypatch.setattr(folding, "all_reduce", sent.append)
    for share in shares:
        ReceivedPrompts("kernel", 2, 1).update(share)
    total = sum(sent)
    monkeypatch.setattr(folding, "all_reduce", lambda sums: sums.copy_(total))
    for share in shares:
        received = ReceivedPrompts("kernel", 2, 1)
        received.update(share)
        assert received.mean.flatten().tolist() == [1, 2]
        assert received.images == 3
