"""Key layouts of timm's models that timm does not convert itself, Hugging Face's above all."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from sp_fast.weights.layouts import OTHER_PARTS, Translated

State = dict[str, Tensor]

# Hugging Face's names -> those of the models' original repositories, which timm converts to its own. The
# rules are applied in order, each to the name that the rules before it have left.
_HUGGING_FACE = [
    (re.compile(pattern), name)
    for pattern, name in (
        # ViT (DINO), DINOv2, DINOv3
        (r"^embeddings\.(cls_token|mask_token)$", r"\1"),
        (r"^embeddings\.position_embeddings$", "pos_embed"),
        (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^(encoder\.|model\.)?layer\.(\d+)\.", r"blocks.\2."),
        (r"\.attention\.(attention\.)?(q|k|v)(uery|ey|alue|_proj)\.", r".attn.\2."),
        (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
        (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.(intermediate\.dense)\.", ".mlp.fc1."),
        (r"\.(output\.dense)\.", ".mlp.fc2."),
        (r"\.weights_in\.", ".w12."),
        (r"\.weights_out\.", ".w3."),
        # ConvNeXt, ConvNeXt V2, DINOv3's ConvNeXt
        (r"^embeddings\.layernorm\.", "downsample_layers.0.1."),
        (r"^(encoder\.)?stages\.(\d+)\.downsampl(ing_layer|e_layers)\.", r"downsample_layers.\2."),
        (r"^(encoder\.)?stages\.(\d+)\.layers\.", r"stages.\2."),
        (r"\.depthwise_conv\.", ".dwconv."),
        (r"\.pointwise_conv", ".pwconv"),
        (r"\.layer_scale_parameter$", ".gamma"),
        (r"\.grn\.weight$", ".grn.gamma"),
        (r"\.grn\.bias$", ".grn.beta"),
        (r"\.layer_?norm\.", ".norm."),
        (r"^layer_?norm\.", "norm."),
    )
]
# EfficientNet-PyTorch's layers -> timm's: outside the blocks, and in blocks without and with an expansion.
_EFFICIENTNET = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_EFFICIENTNET_BLOCK = (
    {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2", **_SQUEEZE},
    {
        "_expand_conv": "conv_pw",
        "_bn0": "bn1",
        "_depthwise_conv": "conv_dw",
        "_bn1": "bn2",
        "_project_conv": "conv_pwl",
        "_bn2": "bn3",
        **_SQUEEZE,
    },
)
_IS_HUGGING_FACE = re.compile(r"embeddings\.|stages\.\d+\.layers\.\d+\.depthwise_conv\.")


def original_names(state: Mapping[str, Tensor]) -> State:
    """Rename Hugging Face's tensors of ViT, DINOv2, DINOv3 and ConvNeXt to their own repositories' names."""
    plain_patches = (
        "downsample_layers.0.0." if "embeddings.layernorm.weight" in state else "patch_embed.proj."
    )
    registers = "register_tokens" if "embeddings.position_embeddings" in state else "storage_tokens"
    gated = any(".gate_proj." in key for key in state)
    mlp = (
        {"gate_proj": "w1", "up_proj": "w2", "down_proj": "w3"}
        if gated
        else {"up_proj": "fc1", "down_proj": "fc2"}
    )
    own = [
        (re.compile(r"^embeddings\.patch_embeddings\.(?=weight|bias)"), plain_patches),
        (re.compile(r"^embeddings\.register_tokens$"), registers),
        *((re.compile(rf"\.mlp\.{theirs}\."), f".mlp.{ours}.") for theirs, ours in mlp.items()),
    ]
    renamed: State = {}
    for key, value in state.items():
        for pattern, name in (*own, *_HUGGING_FACE):
            key = pattern.sub(name, key)
        renamed[key] = value
    return _join_attention(renamed)


def _join_attention(state: State) -> State:
    """Concatenate the query, key and value of each block, with zeros for a missing bias."""
    joined: State = {}
    for key, value in state.items():
        block = re.match(r"(.+\.attn\.)(q|k|v)\.(weight|bias)$", key)
        if block is None:
            joined[key] = value
        elif (name := f"{block[1]}qkv.{block[3]}") not in joined:
            parts = [state.get(f"{block[1]}{part}.{block[3]}") for part in "qkv"]
            joined[name] = torch.cat([torch.zeros_like(value) if part is None else part for part in parts])
    return joined


def efficientnet_names(state: Mapping[str, Tensor], names: Iterable[str]) -> State:
    """Rename EfficientNet-PyTorch's tensors, its blocks counted through all stages, to timm's names."""
    blocks = list(dict.fromkeys(re.findall(r"^blocks\.\d+\.\d+", "\n".join(names), re.MULTILINE)))
    renamed: State = {}
    for key, value in state.items():
        if block := re.match(r"_blocks\.(\d+)\.(\w+)\.", key):
            number = int(block[1])
            wide = f"_blocks.{number}._expand_conv.weight" in state
            place = blocks[number] if number < len(blocks) else f"blocks.{number}"
            key = f"{place}.{_EFFICIENTNET_BLOCK[wide].get(block[2], block[2])}.{key[block.end() :]}"
        else:
            layer, _, rest = key.partition(".")
            key = f"{_EFFICIENTNET.get(layer, layer)}.{rest}"
        renamed[key] = value
    return renamed


def translate_timm(
    tensors: Mapping[str, Tensor], names: Sequence[str], convert: Callable[[State], State]
) -> Translated:
    """Find the prefix under which most parameters of a timm model are, and translate its keys to timm's.

    Args:
        tensors: tensors of the checkpoint by key, without a leading `module.`.
        names: timm's names of all parameters and buffers, in the order of the layers, without the classifier.
        convert: timm's conversion from the original repository's layout to its own.
    """
    wanted = set(names)
    prefixes = {"", *(f"{key.split('.')[0]}." for key in tensors)}
    candidates = []
    for prefix in sorted(prefixes):
        inside = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
        if 2 * len(inside) > len(tensors):
            candidates.append((prefix, *_timm_names(inside, names, convert)))
    prefix, layout, state = max(candidates, key=lambda one: len(wanted & one[2].keys()))
    others = [key for key in state if key not in wanted] + [
        key for key in tensors if not key.startswith(prefix)
    ]
    dropped = {key.split(".")[0] for key in others if OTHER_PARTS.fullmatch(key.split(".")[0])}
    unknown = [key for key in others if key.split(".")[0] not in dropped]
    return Translated(
        layout, {key: value for key, value in state.items() if key in wanted}, unknown, sorted(dropped)
    )


def _timm_names(state: State, names: Sequence[str], convert: Callable[[State], State]) -> tuple[str, State]:
    layout = "timm"
    if "_conv_stem.weight" in state:
        return "EfficientNet-PyTorch", efficientnet_names(state, names)
    if any(_IS_HUGGING_FACE.match(key) for key in state):
        layout, state = "Hugging Face", original_names(state)
    converted = convert(dict(state))
    if layout == "timm" and converted.keys() != state.keys():
        layout = "original repository's"
    # timm leaves out biases that its model lacks, which changes the features unless they are zero.
    lost = {
        key: value
        for key, value in state.items()
        if key.endswith("qkv.bias")
        and key not in converted
        and key.replace("qkv.bias", "q_bias") not in converted
        and any(part.any() for part in value.chunk(3)[::2])  # the key's bias is masked in DINOv3
    }
    return layout, converted | lost
