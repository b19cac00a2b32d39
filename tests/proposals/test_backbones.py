"""Backbones: their features, which padding does not change."""

import warnings

import pytest
import torch
import torchvision
from torch import nn

from sp_fast.proposals import SaliencyProposer, build_backbone
from sp_fast.proposals.extents import output_size


def images(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]


@pytest.mark.parametrize(("name", "channels"), [("resnet18", 512), ("resnet50", 2048)])
def test_resnet_matches_torchvision(name: str, channels: int) -> None:
    backbone = build_backbone(name)
    assert (backbone.channels, backbone.stride) == (channels, 32)
    theirs = getattr(torchvision.models, name)(weights=None).eval()
    theirs.load_state_dict({**theirs.state_dict(), **backbone.body.state_dict()})
    trunk = nn.Sequential(*list(theirs.children())[:-2])
    x = backbone.normalize(images((64, 96))[0])[None]
    with torch.no_grad():
        torch.testing.assert_close(backbone(x), trunk(x))


def test_random_weights_are_named_where_they_may_not_be_meant() -> None:
    with pytest.warns(UserWarning, match="weights: got none, so resnet18 has random weights"):
        build_backbone("resnet18", stage=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_backbone("random")


def test_mobilenet_stages() -> None:
    x = torch.rand(1, 3, 64, 96)
    for stage, (channels, stride) in {1: (24, 4), 2: (32, 8), 3: (96, 16), 4: (320, 32)}.items():
        backbone = build_backbone("mobilenet_v2", stage=stage)
        assert (backbone.channels, backbone.stride) == (channels, stride)
        assert backbone(x).shape == (1, channels, 64 // stride, 96 // stride)


def test_resnet_stages_leave_later_layers_out() -> None:
    backbone = build_backbone("resnet50", stage=3)
    assert backbone(torch.rand(1, 3, 64, 32)).shape == (1, 1024, 4, 2)
    assert not any(key.startswith("layer4") for key in backbone.body.state_dict())


def test_caffe_style() -> None:
    backbone = build_backbone("resnet50", style="caffe")
    block = backbone.body.layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))
    assert backbone.body.layer1[0].conv1.stride == (1, 1)
    pool = backbone.body.maxpool
    assert (pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode) == (3, 2, 0, True)
    pixel = torch.tensor([255, 0, 10], dtype=torch.uint8).reshape(3, 1, 1)
    expected = torch.tensor([10 - 103.53, 0 - 116.28, 255 - 123.675])  # BGR
    torch.testing.assert_close(backbone.normalize(pixel).flatten(), expected)


def test_pytorch_style_normalisation() -> None:
    pixel = torch.tensor([255, 0, 51], dtype=torch.uint8).reshape(3, 1, 1)
    expected = (torch.tensor([1.0, 0.0, 0.2]) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    torch.testing.assert_close(build_backbone("resnet18").normalize(pixel).flatten(), expected)


def test_random_backbone_is_seeded_and_keeps_the_global_random_state() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, same, other = (build_backbone("random", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    picture = images((40, 44))
    maps = first.features(picture).maps
    assert maps.shape == (1, 64, 10, 11)
    assert torch.equal(maps, same.features(picture).maps)
    assert not torch.allclose(maps, other.features(picture).maps)
    filters = first.body[0].weight.flatten(1)  # 64 x 75
    torch.testing.assert_close(filters @ filters.T, torch.eye(64), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "style", "padding"),
    [
        ("resnet18", "pytorch", "zeros"),
        ("resnet18", "caffe", "replicate"),
        ("resnet50", "caffe", "zeros"),
        ("mobilenet_v2", "pytorch", "zeros"),
        ("mobilenet_v2", "pytorch", "replicate"),
        ("random", "pytorch", "zeros"),
        ("random", "pytorch", "replicate"),
    ],
)
def test_padding_does_not_change_features(name: str, style: str, padding: str) -> None:
    backbone = build_backbone(name, style=style, padding=padding)
    pictures = images((65, 130), (97, 64), (40, 75))
    together = backbone.features(pictures)
    assert together.valid.tolist() == [list(size) for size in together.sizes]
    for k, picture in enumerate(pictures):
        alone = backbone.features([picture]).maps[0]
        height, width = together.sizes[k]
        assert alone.shape[1:] == (height, width)
        scale = float(alone.abs().max())
        torch.testing.assert_close(together.maps[k, :, :height, :width], alone, atol=1e-4 * scale, rtol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_a_plain_image_has_equal_features_up_to_its_border_if_replicated(name: str) -> None:
    plain = torch.full((3, 96, 128), 200, dtype=torch.uint8)
    for padding in ("zeros", "replicate"):
        maps = build_backbone(name, padding=padding).features([plain]).maps
        spread = float((maps.amax((2, 3)) - maps.amin((2, 3))).max() / maps.abs().max())
        assert spread > 0.1 if padding == "zeros" else spread < 1e-3


def test_padding_does_not_change_masks() -> None:
    pictures = images((100, 160), (120, 88))
    for preset in ("paper", "official"):
        proposer = SaliencyProposer(build_backbone("random"), preset=preset, min_score=None)
        together = proposer(pictures)
        for k, picture in enumerate(pictures):
            alone = proposer([picture])
            height, width = alone.masks.height, alone.masks.width
            assert int(alone.count[0]) > 0
            masks = together.masks.unpack()[k]
            assert torch.equal(masks[:, :height, :width], alone.masks.unpack()[0])
            assert torch.equal(together.seed_index[k], alone.seed_index[0])


@pytest.mark.parametrize("size", [(7, 7), (8, 9), (13, 32), (1, 2)])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.Conv2d(3, 4, 7, stride=2, padding=3),
        nn.Conv2d(3, 4, 1, stride=2),
        nn.MaxPool2d(3, 2, padding=1),
        nn.MaxPool2d(2, 2, ceil_mode=True),
        nn.MaxPool2d(2, 3, padding=1, ceil_mode=True),
    ],
)
def test_output_size_matches_the_layer(layer: nn.Module, size: tuple[int, int]) -> None:
    assert output_size(layer, size) == tuple(layer(torch.rand(1, 3, *size)).shape[2:])


def test_always_in_eval_mode() -> None:
    backbone = build_backbone("resnet18")
    SaliencyProposer(backbone).train()
    assert not any(module.training for module in backbone.modules())
    assert not any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "resnet18", "padding": "same"},
            "padding: expected one of 'zeros', 'replicate', got 'same'",
        ),
        ({"name": "vgg16"}, "backbone: expected one of 'resnet18', .*'random', 'timm:NAME', got 'vgg16'"),
        ({"name": "resnet50", "style": "tf"}, "style: expected one of 'pytorch', 'caffe', got 'tf'"),
        ({"name": "resnet50", "stage": 5}, "stage: expected 1, 2, 3 or 4, got 5"),
        ({"name": "mobilenet_v2", "style": "caffe"}, "style: caffe is for resnet18"),
        ({"name": "random", "weights": "w.pth"}, "the random backbone takes none"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_backbone(**arguments)


def test_images_of_wrong_shape() -> None:
    for name in ("resnet18", "random"):
        with pytest.raises(ValueError, match=r"images: expected \[..., 3, H, W\]"):
            build_backbone(name).normalize(torch.rand(32, 32, 3))
    with pytest.raises(ValueError, match=r"got \[3, 32, 32\]"):
        SaliencyProposer(build_backbone("random"))(torch.rand(3, 32, 32))
