"""Loading whole models, and backbones in every key layout of published weights."""

import argparse
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from sp_fast.proposals import Backbone, WeightsError, backbone_of, build_backbone
from sp_fast.weights import load_state, read_state
from sp_fast.weights.layouts import mmdet_mobilenet_prefixes

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def trunk() -> Tensors:
    """Random tensors of a ResNet-18 without its classifier."""
    torch.manual_seed(1)
    tensors = torchvision.models.resnet18(weights=None).state_dict()
    return {
        k: torch.rand_like(v) if v.is_floating_point() else v for k, v in tensors.items() if "fc." not in k
    }


def prefixed(tensors: Tensors, prefix: str) -> Tensors:
    return {prefix + key: value for key, value in tensors.items()}


def some(*names: str) -> Tensors:
    return {name: torch.rand(3) for name in names}


LAYOUTS = {
    "torchvision": ("", ["fc.weight", "fc.bias"], False),
    "densecl": ("", [], True),
    "moco_v2": (
        "module.encoder_q.",
        ["module.encoder_q.fc.0.weight", "module.encoder_k.conv1.weight", "module.queue", "module.queue_ptr"],
        True,
    ),
    "swav": ("module.", ["module.projection_head.0.weight", "module.prototypes.weight"], False),
    "mmselfsup": (
        "backbone.",
        ["neck.mlp.0.weight", "head.fc.weight", "queue", "encoder_k.0.conv1.weight"],
        True,
    ),
    "mmpretrain": ("backbone.", ["head.fc.weight", "head.fc.bias"], True),
    "mmdet": (
        "backbone.",
        ["neck.lateral_convs.0.conv.weight", "rpn_head.rpn_conv.weight", "roi_head.bbox_head.fc_cls.weight"],
        True,
    ),
}


def loads_completely(backbone: Backbone, expected: Tensors) -> None:
    state = backbone.body.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(name: str, trunk: Tensors, tmp_path: Path) -> None:
    prefix, others, nested = LAYOUTS[name]
    tensors: dict[str, Any] = prefixed(trunk, prefix) | some(*others)
    # Published files hold more than tensors.
    content = {"state_dict": tensors, "epoch": 200, "arch": "resnet18"} if nested else tensors
    torch.save(content, tmp_path / "weights.pth")
    backbone = build_backbone("resnet18", weights=tmp_path / "weights.pth")
    loads_completely(backbone, trunk)
    report = backbone.weights_report
    assert report is not None
    assert report.loaded == len(trunk)
    assert not report.missing
    assert not report.unknown
    parts = {key.removeprefix(prefix).removeprefix("module.").split(".")[0] for key in others}
    assert set(report.dropped) == parts


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "mobilenet_v2"])
def test_the_network_of_a_checkpoint_is_recognised(name: str, tmp_path: Path) -> None:
    tensors = getattr(torchvision.models, name)(weights=None).state_dict()
    tensors = prefixed({k: v for k, v in tensors.items() if "num_batches" not in k}, "backbone.")
    torch.save({"state_dict": tensors | some("neck.mlp.0.weight")}, tmp_path / "weights.pth")
    assert backbone_of(tmp_path / "weights.pth") == name


def test_a_checkpoint_of_no_known_network(tmp_path: Path) -> None:
    torch.save(some("encoder.patch_embed.weight"), tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"no parameter of resnet18, .* holds encoder.patch_embed"):
        backbone_of(tmp_path / "weights.pth")


def test_pickle_with_more_than_tensors(trunk: Tensors, tmp_path: Path) -> None:
    options = argparse.Namespace(lr=0.03)
    torch.save({"state_dict": prefixed(trunk, "module."), "args": options}, tmp_path / "weights.pth")
    loads_completely(build_backbone("resnet18", weights=tmp_path / "weights.pth"), trunk)


def test_mmdet_names_of_mobilenet(tmp_path: Path) -> None:
    whole = torchvision.models.mobilenet_v2(weights=None).state_dict()
    features = {k: v for k, v in whole.items() if k.startswith("features.")}
    theirs = {ours: name for name, ours in mmdet_mobilenet_prefixes().items()}
    renamed = {}
    for key, value in features.items():
        prefix, rest = key.rsplit(".", 1)
        renamed[f"backbone.{theirs[prefix + '.']}{rest}"] = value
    assert "backbone.layer2.0.depthwise_conv.bn.running_mean" in renamed
    assert "backbone.layer1.0.linear_conv.conv.weight" in renamed
    torch.save({"state_dict": renamed}, tmp_path / "weights.pth")
    backbone = build_backbone("mobilenet_v2", weights=tmp_path / "weights.pth")
    loads_completely(backbone, {k: v for k, v in features.items() if not k.startswith("features.18.")})


def test_without_batch_counters_and_in_half_precision(trunk: Tensors, tmp_path: Path) -> None:
    tensors = {k: v.half() for k, v in trunk.items() if not k.endswith("num_batches_tracked")}
    torch.save(tensors, tmp_path / "weights.pth")
    backbone = build_backbone("resnet18", weights=tmp_path / "weights.pth")
    weight = backbone.body.state_dict()["conv1.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, trunk["conv1.weight"].half().float())


def test_stages_left_out_need_no_weights(trunk: Tensors, tmp_path: Path) -> None:
    torch.save({k: v for k, v in trunk.items() if not k.startswith("layer4")}, tmp_path / "weights.pth")
    build_backbone("resnet18", stage=3, weights=tmp_path / "weights.pth")
    torch.save(trunk, tmp_path / "weights.pth")
    build_backbone("resnet18", stage=3, weights=tmp_path / "weights.pth")


def test_missing_keys(trunk: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({k: v for k, v in trunk.items() if not k.startswith("layer4.1.conv")}, path)
    with pytest.raises(
        WeightsError, match=r"2 missing: layer4.1.conv1.weight, layer4.1.conv2.weight\. To fix"
    ):
        build_backbone("resnet18", weights=path)
    backbone = build_backbone("resnet18", weights=path, allow_partial=True)
    assert backbone.weights_report is not None
    assert backbone.weights_report.missing == ("layer4.1.conv1.weight", "layer4.1.conv2.weight")
    assert "missing and left random: layer4.1.conv1.weight" in str(backbone.weights_report)
    random = build_backbone("resnet18").body.state_dict()["layer4.1.conv1.weight"]
    assert torch.equal(backbone.body.state_dict()["layer4.1.conv1.weight"], random)


def test_many_missing_keys_are_abbreviated(trunk: Tensors, tmp_path: Path) -> None:
    torch.save({"conv1.weight": trunk["conv1.weight"]}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=r"99 missing: bn1.bias, .* and 91 more \(99 in all\)"):
        build_backbone("resnet18", weights=tmp_path / "weights.pth")


def test_unknown_keys(trunk: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(trunk | some("layer1.0.se.weight", "extra"), path)
    with pytest.raises(WeightsError, match=r"2 unknown: layer1.0.se.weight, extra\."):
        build_backbone("resnet18", weights=path)
    report = build_backbone("resnet18", weights=path, allow_partial=True).weights_report
    assert report is not None
    assert report.unknown == ("layer1.0.se.weight", "extra")


def test_other_shapes_are_never_accepted(trunk: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(trunk | {"bn1.weight": torch.rand(32)}, path)
    for allow_partial in (False, True):
        with pytest.raises(
            WeightsError, match=r"1 of another shape: bn1.weight \(file \[32\], model \[64\]\)"
        ):
            build_backbone("resnet18", weights=path, allow_partial=allow_partial)


def test_weights_of_another_network(trunk: Tensors, tmp_path: Path) -> None:
    torch.save(trunk, tmp_path / "weights.pth")
    with pytest.raises(
        WeightsError, match=r"no key of .*weights.pth belongs to mobilenet_v2: it holds conv1"
    ):
        build_backbone("mobilenet_v2", weights=tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected weights saved by torch.save or safetensors"),
        (b"<!DOCTYPE html><html>not found</html>", "expected weights saved by torch.save or safetensors"),
    ],
)
def test_file_that_is_not_a_checkpoint(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(WeightsError, match=message):
        build_backbone("resnet18", weights=tmp_path / "weights.pth")


def test_checkpoint_without_tensors(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match="has no named tensors"):
        build_backbone("resnet18", weights=tmp_path / "weights.pth")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="weights: no such file"):
        build_backbone("resnet18", weights=tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="got a folder"):
        build_backbone("resnet18", weights=tmp_path)


def test_real_mobilenet_loads_completely(data_dir) -> None:
    report = build_backbone(
        "mobilenet_v2", weights=data_dir("weights/mobilenet_v2_imagenet.pth")
    ).weights_report
    assert report is not None
    assert (report.missing, report.unknown, report.dropped) == ((), (), ("classifier",))


def test_real_caffe_resnet_is_partial(data_dir) -> None:
    path = data_dir("weights/resnet50_caffe_to_layer3.pth")
    with pytest.raises(WeightsError, match=r"9 missing: layer4.0.conv2.weight"):
        build_backbone("resnet50", style="caffe", weights=path)
    report = build_backbone("resnet50", style="caffe", weights=path, allow_partial=True).weights_report
    assert report is not None
    assert len(report.missing) == 9
    complete = build_backbone("resnet50", style="caffe", stage=3, weights=path).weights_report
    assert complete is not None
    assert not complete.missing


def detector(classes: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(body=nn.Linear(2, 3), norm=nn.BatchNorm1d(3), fc_cls=nn.Linear(3, classes))
    )


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"model": s, "epoch": 3}]
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_whole_model(tmp_path: Path, wrap: Any, prefix: str) -> None:
    source, target = detector(4), detector(4)
    state = source.state_dict()
    wrapped = OrderedDict((prefix + key, value) for key, value in state.items())
    if prefix:
        wrapped._metadata = nn.DataParallel(source).state_dict()._metadata
    else:
        wrapped._metadata = state._metadata
    torch.save(wrap(wrapped), tmp_path / "w.pth")
    read = read_state(tmp_path / "w.pth")
    assert {**state._metadata} == {key: read._metadata[key] for key in state._metadata}
    report = load_state(target, read, tmp_path / "w.pth")
    assert (report.loaded, str(report)) == (len(state), f"{len(state)} tensors loaded")
    for key, value in target.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_whole_model_refuses_differences(tmp_path: Path) -> None:
    state = detector(4).state_dict()
    del state["norm.num_batches_tracked"], state["norm.weight"]
    state["prompt.weight"] = torch.zeros(1)

    model = detector(7)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match="does not fit the model; nothing was loaded") as error:
        load_state(model, state, "w.pth", allow=[r"prompt\."])
    for text in ("1 missing: norm.weight", "2 of another shape: fc_cls.bias (file [4], model [7])"):
        assert text in str(error.value)
    assert "prompt" not in str(error.value)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())

    report = load_state(model, state, "w.pth", allow=[r"prompt\.", "fc_cls", r"norm\.weight$"])
    assert report.missing == ("norm.weight",)
    assert report.unknown == ("prompt.weight",)
    assert report.mismatched == (
        "fc_cls.bias (file [4], model [7])",
        "fc_cls.weight (file [4, 3], model [7, 3])",
    )
    assert torch.equal(model.body.weight, state["body.weight"])
    assert torch.equal(model.fc_cls.weight, before["fc_cls.weight"])


def test_weights_of_another_model(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"8 missing: body\.bias.*1 unknown: stem\.weight"):
        load_state(detector(2), {"stem.weight": torch.zeros(3)}, "w.pth")
    torch.save({"state_dict": {"stem": 3}}, tmp_path / "w.pth")
    with pytest.raises(WeightsError, match="has no named tensors"):
        read_state(tmp_path / "w.pth")
