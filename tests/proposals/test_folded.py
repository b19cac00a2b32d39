"""Networks as a CPU runs them fastest, against the networks themselves."""

import copy

import pytest
import torch
from torch import nn

from sp_fast.proposals import build_backbone
from sp_fast.proposals.folded import FoldedNetwork, folded

NETWORKS = [("mobilenet_v2", "pytorch"), ("resnet18", "pytorch"), ("resnet50", "caffe")]


def with_statistics(network: nn.Module) -> nn.Module:
    """Give batch norms values that would show if they were left out."""
    generator = torch.Generator().manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for value, low in (
                (layer.running_mean, -1),
                (layer.bias, -1),
                (layer.running_var, 1),
                (layer.weight, 0.5),
            ):
                value.data.uniform_(low, low + 1, generator=generator)
    return network


def needs_usable(network: FoldedNetwork) -> FoldedNetwork:
    if not network.usable():
        pytest.skip("needs oneDNN on x86")
    return network


def assert_same(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("name", "style"), NETWORKS)
@torch.no_grad()
def test_same_as_the_network(name, style):
    backbone = with_statistics(build_backbone(name, style=style))
    run = needs_usable(FoldedNetwork(backbone.body))
    images = torch.randn(1, 3, 97, 130, generator=torch.Generator().manual_seed(1))
    assert_same(run(images), backbone(images))


@torch.no_grad()
def test_no_layers_are_left_unfolded():
    layers = folded(build_backbone("resnet18").body).modules()
    assert not any(isinstance(layer, nn.Conv2d | nn.BatchNorm2d) for layer in layers)


@torch.no_grad()
def test_changed_parameters_are_seen():
    backbone = build_backbone("resnet18", stage=1, seed=1)
    run, images = needs_usable(FoldedNetwork(backbone.body)), torch.randn(1, 3, 40, 50)
    before = run(images)
    backbone.load_state_dict(build_backbone("resnet18", stage=1, seed=2).state_dict())
    assert not torch.allclose(run(images), before)
    assert_same(run(images), backbone(images))


@torch.no_grad()
def test_features_of_a_batch_are_those_of_each_image():
    backbone = build_backbone("resnet18", stage=2)
    images = [torch.randint(256, (3, *size), dtype=torch.uint8) for size in ((40, 60), (64, 33))]
    together = backbone.features(images)
    for index, image in enumerate(images):
        height, width = together.sizes[index]
        assert torch.equal(together.maps[index, :, :height, :width], backbone.features([image]).maps[0])
        plain = build_backbone("resnet18", stage=2, folded=False)
        assert_same(plain.features([image]).maps, backbone.features([image]).maps)


@torch.no_grad()
def test_used_only_where_it_is_the_same():
    backbone = build_backbone("resnet18", stage=1)
    run = needs_usable(FoldedNetwork(backbone.body))
    with torch.autocast("cpu"):
        assert not run.usable()
    with torch.backends.mkldnn.flags(enabled=False):
        assert not run.usable()
    assert not FoldedNetwork(copy.deepcopy(backbone.body).double()).usable()


def test_a_backbone_keeps_its_parameters_and_can_be_copied():
    backbone = build_backbone("resnet18", stage=1)
    names = set(backbone.state_dict())
    backbone.features([torch.zeros(3, 40, 50, dtype=torch.uint8)])
    assert set(copy.deepcopy(backbone).state_dict()) == names == set(backbone.state_dict())


def test_a_backbone_may_be_built_in_inference_mode():
    image = torch.full((3, 40, 50), 100, dtype=torch.uint8)
    with torch.inference_mode():
        found = build_backbone("resnet18", stage=1).features([image]).maps
    assert torch.equal(found, build_backbone("resnet18", stage=1).features([image]).maps)
