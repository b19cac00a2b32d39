"""Key layouts of timm's models, each read in full: Hugging Face's and the original repositories'."""

import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from sp_fast.weights.layouts import Translated
from sp_fast.weights.timm_layouts import translate_timm

pytest.importorskip("timm")
from timm.layers import SwiGLUPacked
from timm.models import convnext, eva, vision_transformer
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet

from sp_fast.proposals.timm_backbone import _converted

Tensors = dict[str, Tensor]

# Names and shapes as transformers 4.57 saves them, of models with a single block or one in each stage.
HUGGING_FACE = json.loads((Path(__file__).parent / "hugging_face_keys.json").read_text())


def model(kind: str) -> nn.Module:
    """A narrow model of timm."""
    vit = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2, "num_classes": 0}
    blocks = {"depths": [1] * 4, "dims": [4, 8, 12, 16], "num_classes": 0}
    registers = {"reg_tokens": 4, "no_embed_class": True}
    rope = {
        "num_reg_tokens": 4,
        "use_rot_pos_emb": True,
        "rope_type": "dinov3",
        "use_abs_pos_emb": False,
        "use_fc_norm": False,
    }
    build = {
        "vit": lambda: vision_transformer.VisionTransformer(**vit),
        "dinov2": lambda: vision_transformer.VisionTransformer(**vit, init_values=1.0),
        "dinov2_with_registers": lambda: vision_transformer.VisionTransformer(
            **vit, init_values=1.0, **registers
        ),
        "dinov2_swiglu": lambda: vision_transformer.VisionTransformer(
            **vit, init_values=1.0, mlp_layer=SwiGLUPacked, mlp_ratio=6, act_layer=nn.SiLU
        ),
        "dinov3_vit": lambda: eva.Eva(**vit, **rope, init_values=1.0),
        "dinov3_vit_without_biases": lambda: eva.Eva(**vit, **rope, init_values=1.0, qkv_bias=False),
        "dinov3_vit_gated": lambda: eva.Eva(
            **vit, **rope, init_values=1.0, swiglu_mlp=True, swiglu_align_to=8
        ),
        "convnext": lambda: convnext.ConvNeXt(**blocks),
        "convnextv2": lambda: convnext.ConvNeXt(**blocks, use_grn=True, ls_init_value=None),
        "dinov3_convnext": lambda: convnext.ConvNeXt(**blocks),
    }
    return build[kind]()


def efficientnet() -> nn.Module:
    """A narrow EfficientNet of timm: a block without expansion, then stages of two blocks and of one."""
    blocks = ["ds_r1_k3_s1_e1_c8_se0.25", "ir_r2_k3_s2_e2_c8_se0.25", "ir_r1_k3_s2_e2_c16_se0.25"]
    own = EfficientNet(
        decode_arch_def([[one] for one in blocks]), num_features=32, stem_size=8, num_classes=0
    )
    return own.apply(lambda layer: layer.reset_parameters() if isinstance(layer, nn.Conv2d) else None)


def efficientnet_pytorch(own: nn.Module) -> Tensors:
    """EfficientNet-PyTorch's names of a model's tensors."""
    first = ["depthwise_conv", "bn1", "se_reduce", "se_expand", "project_conv", "bn2"]
    others = ["expand_conv", "bn0", "depthwise_conv", "bn1", "se_reduce", "se_expand", "project_conv", "bn2"]
    stems = ["_conv_stem", "_bn0"]
    theirs = [f"_blocks.{number}._{layer}" for number in range(4) for layer in (others if number else first)]
    layers = list(dict.fromkeys(key.rpartition(".")[0] for key in own.state_dict()))
    table = dict(zip(layers, [*stems, *theirs, "_conv_head", "_bn1"], strict=True))
    named = ((key.rpartition("."), value) for key, value in own.state_dict().items())
    return {f"{table[layer]}.{rest}": value for (layer, _, rest), value in named} | {
        "_fc.bias": torch.rand(5)
    }


def translated(tensors: Tensors, own: nn.Module) -> Translated:
    result = translate_timm(tensors, list(own.state_dict()), partial(_converted, own))
    if not result.unknown:
        own.load_state_dict(result.state)  # all of the same shape, none missing
    return result


def hugging_face(kind: str, prefix: str = "") -> Tensors:
    generator = torch.Generator().manual_seed(0)
    return {prefix + key: torch.rand(shape, generator=generator) for key, shape in HUGGING_FACE[kind].items()}


@pytest.mark.parametrize("prefix", ["", "backbone."])
@pytest.mark.parametrize("kind", sorted(HUGGING_FACE))
def test_hugging_face(kind: str, prefix: str) -> None:
    tensors = hugging_face(kind, prefix) | ({"classifier.weight": torch.rand(3, 8)} if prefix else {})
    found = translated(tensors, model(kind))
    assert found.layout == "Hugging Face"
    assert not found.unknown
    assert set(found.dropped) == ({"classifier"} if prefix else set()) | (
        {"pooler"} if kind == "vit" else set()
    )


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("vit", "encoder.layer.0.attention.attention.{}.weight query key value"),
        ("dinov3_vit", "layer.0.attention.{}.weight q_proj k_proj v_proj"),
    ],
)
def test_query_key_and_value_in_order(kind: str, parts: str) -> None:
    name, *projections = parts.split()
    tensors = hugging_face(kind)
    expected = torch.cat([tensors[name.format(projection)] for projection in projections])
    assert torch.equal(translated(tensors, model(kind)).state["blocks.0.attn.qkv.weight"], expected)


def test_gated_layers_in_order() -> None:
    tensors = hugging_face("dinov3_vit_gated")
    state = translated(tensors, model("dinov3_vit_gated")).state
    for theirs, ours in {"gate_proj": "fc1_g", "up_proj": "fc1_x", "down_proj": "fc2"}.items():
        assert torch.equal(state[f"blocks.0.mlp.{ours}.weight"], tensors[f"layer.0.mlp.{theirs}.weight"])


def test_original_dinov2() -> None:
    own = model("dinov2_with_registers")
    tensors = own.state_dict()
    cls_token, positions = torch.rand(1, 1, 8), torch.rand(1, 5, 8)
    tensors |= {"cls_token": cls_token, "pos_embed": positions, "mask_token": torch.rand(1, 8)}
    tensors["register_tokens"] = tensors.pop("reg_token")
    found = translated({f"backbone.{key}": value for key, value in tensors.items()}, own)
    assert (found.layout, found.unknown) == ("original repository's", [])
    assert torch.equal(found.state["cls_token"], cls_token + positions[:, :1])
    assert torch.equal(found.state["pos_embed"], positions[:, 1:])


def original_dinov3(own: nn.Module, bias: Tensor) -> Tensors:
    """DINOv3's names of a model's parameters, with a bias for the query, key and value, and a mask of it."""
    tensors = {
        re.sub(r"gamma_(\d)", r"ls\1.gamma", key).replace("reg_token", "storage_tokens"): value
        for key, value in own.state_dict().items()
        if not key.endswith(("q_bias", "v_bias", "k_bias"))
    }
    extra = {"mask_token": torch.rand(1, 8), "rope_embed.periods": torch.rand(1)}
    masked = {"blocks.0.attn.qkv.bias": bias, "blocks.0.attn.qkv.bias_mask": torch.ones(24)}
    return tensors | extra | masked


def test_original_dinov3() -> None:
    own = model("dinov3_vit")
    bias = torch.rand(24)
    found = translated(original_dinov3(own, bias), own)
    assert (found.layout, found.unknown) == ("original repository's", [])
    assert torch.equal(found.state["blocks.0.attn.q_bias"], bias[:8])
    assert torch.equal(found.state["blocks.0.attn.v_bias"], bias[16:])


def test_biases_that_the_model_lacks_are_left_out_only_if_they_are_zero() -> None:
    own = model("dinov3_vit_without_biases")
    zero = torch.zeros(24)
    key_only = torch.zeros(24).index_fill(0, torch.arange(8, 16), 1.0)  # masked in DINOv3
    for bias in (zero, key_only):
        assert not translated(original_dinov3(own, bias), own).unknown
    found = translated(original_dinov3(own, torch.rand(24)), own)
    assert found.unknown == ["blocks.0.attn.qkv.bias"]


def test_original_convnext() -> None:
    own = model("convnextv2")
    tensors = {}
    for key, value in own.state_dict().items():
        key = re.sub(r"^stem\.", "downsample_layers.0.", key)
        key = re.sub(r"^stages\.(\d+)\.downsample\.", r"downsample_layers.\1.", key)
        key = key.replace("blocks.", "").replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        key = key.replace("mlp.grn.weight", "grn.gamma").replace("mlp.grn.bias", "grn.beta")
        tensors[key.replace("head.norm", "norm")] = value[None] if "grn" in key else value
    found = translated(tensors | {"head.weight": torch.rand(3, 16)}, own)
    assert (found.layout, found.unknown, found.dropped) == ("original repository's", [], ["head"])


def test_layout_of_timm() -> None:
    own = model("vit")
    found = translated(own.state_dict() | {"head.weight": torch.rand(3, 8), "extra": torch.rand(1)}, own)
    assert (found.layout, found.unknown, found.dropped) == ("timm", ["extra"], ["head"])
    assert found.state.keys() == own.state_dict().keys()


def test_dino_training_checkpoint() -> None:
    own = model("vit")
    tensors = {f"backbone.{key}": value for key, value in own.state_dict().items()}
    found = translated(tensors | {"head.mlp.0.weight": torch.rand(2, 8)}, own)
    assert (found.unknown, found.dropped, len(found.state)) == ([], ["head"], len(own.state_dict()))


def test_a_file_of_another_network_gives_its_unknown_keys() -> None:
    tensors = {"layer1.0.conv1.weight": torch.rand(2, 2), "fc.weight": torch.rand(2, 2)}
    for kind in ("vit", "dinov3_vit", "convnext"):
        found = translated(tensors, model(kind))
        assert not found.state
        assert (found.unknown, found.dropped) == (["layer1.0.conv1.weight"], ["fc"])


def test_efficientnet_pytorch() -> None:
    own = efficientnet()
    tensors = efficientnet_pytorch(own)
    assert "_blocks.2._se_expand.bias" in tensors
    for some in (tensors, {key: tensors[key] for key in sorted(tensors)}):  # safetensors sorts them
        found = translate_timm(some, list(own.state_dict()), dict)
        assert (found.layout, found.unknown, found.dropped) == ("EfficientNet-PyTorch", [], ["classifier"])
        assert found.state.keys() == own.state_dict().keys()
        assert all(torch.equal(value, own.state_dict()[key]) for key, value in found.state.items())
