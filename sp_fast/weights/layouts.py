"""Key layouts of published backbones, and their translation to torchvision's names."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import NamedTuple

from torch import Tensor

# Prefix of the backbone's keys -> where the layout comes from; the first wins a tie.
LAYOUTS = {
    "encoder_q.": "MoCo-v2",
    "backbone.": "mmselfsup, mmpretrain or mmdet",
    "": "torchvision, DenseCL or SwAV",
}
# Parts of published checkpoints other than the backbone, by the first component of their keys.
OTHER_PARTS = re.compile(
    r"fc|classifier|prototypes|predictor|projector|neck|heads?|\w+_head|queue2?(_ptr)?|encoder_k|momentum_encoder"
    r"|target_generator|data_preprocessor|pooler"
)


class Translated(NamedTuple):
    """A checkpoint with torchvision's names.

    Attributes:
        layout: where its key layout comes from.
        state: tensors of the backbone by torchvision's names.
        unknown: keys of neither the backbone nor another known part.
        dropped: names of the other parts.
    """

    layout: str
    state: dict[str, Tensor]
    unknown: list[str]
    dropped: list[str]


def translate(tensors: Mapping[str, Tensor], names: Collection[str]) -> Translated:
    """Find the prefix under which most parameters of a backbone are, and translate its keys.

    Args:
        tensors: tensors of the checkpoint by key, without a leading `module.`.
        names: torchvision's names of all parameters and buffers of the backbone.
    """
    renamed = {
        prefix: {key: _rename(key[len(prefix) :]) for key in tensors if key.startswith(prefix)}
        for prefix in LAYOUTS
    }
    prefix = max(LAYOUTS, key=lambda prefix: sum(name in names for name in renamed[prefix].values()))
    state: dict[str, Tensor] = {}
    unknown: list[str] = []
    dropped: set[str] = set()
    for key, value in tensors.items():
        name = renamed[prefix].get(key, key)
        part = name.split(".")[0]
        if key in renamed[prefix] and name in names:
            state[name] = value
        elif OTHER_PARTS.fullmatch(part):
            dropped.add(part)
        else:
            unknown.append(key)
    return Translated(LAYOUTS[prefix], state, unknown, sorted(dropped))


def _rename(key: str) -> str:
    """Translate mmdet's and mmpretrain's MobileNetV2 names to torchvision's; keep all others."""
    for theirs, ours in _MMDET_MOBILENET.items():
        if key.startswith(theirs):
            return ours + key[len(theirs) :]
    return key


def mmdet_mobilenet_prefixes() -> dict[str, str]:
    """Prefixes of MobileNetV2's parameter names: mmdet's (without `backbone.`) -> torchvision's."""
    table = {"conv1.conv.": "features.0.0.", "conv1.bn.": "features.0.1."}
    index = 1
    for layer, blocks in enumerate((1, 2, 3, 4, 3, 3, 1), start=1):
        steps = ("expand_conv", "depthwise_conv", "linear_conv")[layer == 1 :]
        for block in range(blocks):
            for number, step in enumerate(steps):
                theirs, ours = f"layer{layer}.{block}.{step}.", f"features.{index}.conv."
                last = step == "linear_conv"  # not in a block with its batch norm
                table[f"{theirs}conv."] = f"{ours}{number}." if last else f"{ours}{number}.0."
                table[f"{theirs}bn."] = f"{ours}{number + 1}." if last else f"{ours}{number}.1."
            index += 1
    return table | {"conv2.conv.": "features.18.0.", "conv2.bn.": "features.18.1."}


_MMDET_MOBILENET = mmdet_mobilenet_prefixes()
