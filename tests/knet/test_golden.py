"""Our K-Net heads reproduce a recorded run of the authors' heads on a narrow model."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import sp_fast.models  # noqa: F401
from sp_fast.knet import KNet, Targets
from tests.knet.model import knet_config

ACTIVATIONS = 1e-4
GRADIENTS = 1e-3


def relative(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm().clamp(min=1e-12)).item()


@pytest.fixture(scope="module")
def golden(data_dir):
    """The recorded run and ours, with the same weights, features and targets."""
    theirs = torch.load(data_dir("knet_golden.pt"), weights_only=True)
    config = theirs["config"]
    model = knet_config(
        channels=config["channels"],
        num_proposals=config["num_proposals"],
        num_classes=config["num_classes"],
        num_heads=config["num_heads"],
        feedforward_channels=config["feedforward_channels"],
        num_stages=config["num_stages"],
        gn_groups=config["gn_groups"],
        positional_num_feats=config["positional_num_feats"],
    )
    model.pop("type")
    knet = KNet(**model)
    for head in ("rpn_head", "roi_head"):
        weights = {k[len(head) + 1 :]: v for k, v in theirs["state_dict"].items() if k.startswith(head + ".")}
        getattr(knet, head).load_state_dict(weights, strict=True)
    knet.train()
    first = knet.rpn_head(theirs["features"])
    stages = knet.roi_head(first)
    counts = [len(labels) for labels in theirs["gt_labels"]]
    most = max(counts)
    targets = Targets(
        torch.stack([F.pad(m, (0, 0, 0, 0, 0, most - len(m))) for m in theirs["gt_masks_stride4"]]),
        torch.stack([F.pad(labels, (0, most - len(labels))) for labels in theirs["gt_labels"]]),
        torch.tensor(counts),
    )
    losses, assigned = knet.loss_from(first, stages, targets)
    sum(losses.values()).backward()
    return SimpleNamespace(
        theirs=theirs, knet=knet, first=first, stages=stages, losses=losses, assigned=assigned
    )


def test_first_head(golden):
    theirs = golden.theirs["first_head"]
    assert relative(golden.first.kernels, theirs["proposal_kernels"].flatten(2)) < ACTIVATIONS
    assert relative(golden.first.x, theirs["x"]) < ACTIVATIONS
    assert relative(golden.first.mask_logits, theirs["mask_logits"]) < ACTIVATIONS


def test_stages(golden):
    assert len(golden.stages) == len(golden.theirs["stages"])
    for ours, theirs in zip(golden.stages, golden.theirs["stages"], strict=True):
        assert relative(ours.cls_logits, theirs["cls_logits"]) < ACTIVATIONS
        assert relative(ours.mask_logits, theirs["mask_logits"]) < ACTIVATIONS
        assert relative(ours.kernels, theirs["kernels"].flatten(2)) < ACTIVATIONS


def test_assignment(golden):
    assert torch.equal(golden.assigned + 1, golden.theirs["assigned_gt"])


def test_losses(golden):
    assert set(golden.losses) == set(golden.theirs["losses"])
    for name, theirs in golden.theirs["losses"].items():
        assert golden.losses[name].item() == pytest.approx(theirs.item(), rel=ACTIVATIONS), name
    assert sum(golden.losses.values()).item() == pytest.approx(golden.theirs["total"].item(), rel=ACTIVATIONS)


def test_gradient_norms(golden):
    ours = dict(golden.knet.named_parameters())
    assert set(golden.theirs["grad_norms"]) == {k for k in ours if k.startswith(("rpn_head.", "roi_head."))}
    for name, theirs in golden.theirs["grad_norms"].items():
        assert ours[name].grad.norm().item() == pytest.approx(theirs.item(), rel=GRADIENTS), name
