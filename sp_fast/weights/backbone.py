"""Published backbone weights: which key layout a checkpoint has, and loading it completely or not at all."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sp_fast.weights.unpickle import load_foreign

# Prefix of the backbone's keys -> whose layout it is; the order breaks ties.
LAYOUTS = {
    "module.encoder_q.": "MoCo-v2",
    "backbone.": "mmselfsup, mmpretrain or mmdet",
    "module.backbone.": "mmselfsup, mmpretrain or mmdet, saved from parallel training",
    "module.": "SwAV",
    "": "torchvision or DenseCL",
}
# Parts of published checkpoints that are not the backbone, by the first part of their name.
_OTHER_PARTS = frozenset(
    (
        "fc",
        "classifier",
        "projection_head",
        "prototypes",
        "encoder_k",
        "queue",
        "queue_ptr",
        "queue2",
        "queue2_ptr",
        "neck",
        "head",
        "heads",
        "rpn_head",
        "roi_head",
        "bbox_head",
        "mask_head",
        "mask_feat_head",
        "panoptic_head",
        "semantic_head",
        "decode_head",
        "auxiliary_head",
        "data_preprocessor",
        "predictor",
        "projector",
        "target_generator",
        "momentum_encoder",
    )
)
_INVERTED_RESIDUAL = ("expand_conv", "depthwise_conv", "linear_conv")
_SHOWN = 8


class WeightsError(ValueError):
    """A file of weights that is not one, or does not fit the backbone."""


@dataclass(frozen=True)
class WeightsReport:
    """What loading a checkpoint did.

    Attributes:
        layout: whose key layout it was.
        loaded: how many parameters and buffers were set.
        missing: parameters the file lacks; they stay random.
        unknown: keys of the file that are neither the backbone's nor a known other part's; left out.
        dropped: other parts that were left out by name, such as `fc` or `rpn_head`.
    """

    layout: str
    loaded: int
    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{self.loaded} tensors loaded ({self.layout} layout)"]
        if self.dropped:
            parts.append(f"left out: {', '.join(self.dropped)}")
        if self.missing:
            parts.append(f"missing and left random: {abbreviate(self.missing)}")
        if self.unknown:
            parts.append(f"unknown and left out: {abbreviate(self.unknown)}")
        return "; ".join(parts)


def load_backbone_weights(
    backbone: nn.Module, path: str | os.PathLike[str], allow_partial: bool = False
) -> WeightsReport:
    """Load a checkpoint into a backbone in place.

    Recognised key layouts, bare or under `state_dict`: torchvision and DenseCL (bare names), MoCo-v2
    (`module.encoder_q.`), SwAV (`module.`), mmselfsup, mmpretrain and mmdet (`backbone.`; their MobileNetV2
    names too). Heads and other parts of a detector are dropped by name, and so are stages the backbone was
    built without. No code in the file is run.

    Args:
        backbone: from `build_backbone`, or a detector's backbone with torchvision's parameter names (those of
            its `body` where it has one).
        path: the checkpoint.
        allow_partial: accept missing and unknown keys; the report, kept as `backbone.weights_report`, says
            which.

    Raises:
        WeightsError: not a checkpoint of tensors; missing or unknown keys (unless `allow_partial`), or shapes
            that do not match; the message lists them. The backbone is then unchanged.
        FileNotFoundError: no such file.
    """
    path = Path(path)
    tensors = _read(path)
    body: nn.Module = getattr(backbone, "body", backbone)
    architecture: str = getattr(backbone, "name", type(backbone).__name__)
    wanted = body.state_dict()
    complete = getattr(backbone, "complete_keys", None) or frozenset(wanted)
    prefix = _recognise(tensors, complete, path, architecture)
    ours: dict[str, Tensor] = {}
    dropped: set[str] = set()
    unknown: list[str] = []
    for key, value in tensors.items():
        name = _rename(key[len(prefix) :]) if key.startswith(prefix) else key.removeprefix("module.")
        part = name.split(".")[0]
        if key.startswith(prefix) and name in complete:
            if name in wanted:  # otherwise of a stage the backbone was built without
                ours[name] = value
        elif part in _OTHER_PARTS:
            dropped.add(part)
        else:
            unknown.append(key)
    missing = sorted(key for key in wanted if key not in ours and not key.endswith("num_batches_tracked"))
    mismatched = sorted(
        f"{key} (file {list(ours[key].shape)}, {architecture} {list(wanted[key].shape)})"
        for key in ours
        if ours[key].shape != wanted[key].shape
    )
    _check(path, architecture, missing, unknown, mismatched, allow_partial)
    # A file's tensor may be of another precision or hold BatchNorm's counter as a number of another type.
    body.load_state_dict({**wanted, **{k: v.to(wanted[k].dtype) for k, v in ours.items()}})
    report = WeightsReport(LAYOUTS[prefix], len(ours), tuple(missing), tuple(unknown), tuple(sorted(dropped)))
    backbone.weights_report = report  # type: ignore[assignment]
    return report


def closest_network(
    path: str | os.PathLike[str], networks: Mapping[str, Mapping[str, tuple[int, ...]]]
) -> str:
    """Which network a checkpoint holds: the one whose parameters differ least from it.

    Args:
        path: the checkpoint, in any layout of `load_backbone_weights`.
        networks: the shape of every parameter, by name, of every network that may be meant.

    Raises:
        WeightsError: not a checkpoint of tensors, or no parameter of any of the networks is in it.
        FileNotFoundError: no such file.
    """
    tensors = _read(Path(path))
    differences: dict[str, int] = {}
    for network, shapes in networks.items():
        prefix, found = _best_prefix(tensors, shapes)
        ours = {_rename(key[len(prefix) :]): tensors[key] for key in tensors if key.startswith(prefix)}
        fitting = {key for key in shapes.keys() & ours.keys() if tuple(ours[key].shape) == shapes[key]}
        if found and fitting:
            parts = {key for key in ours if key.split(".")[0] not in _OTHER_PARTS}
            differences[network] = len(shapes.keys() - fitting) + len(parts - fitting)
    if not differences:
        raise WeightsError(
            f"weights: {path} has no parameter of {', '.join(networks)}: it holds {abbreviate(list(tensors))}"
        )
    return min(differences, key=lambda network: differences[network])


def abbreviate(names: Collection[str], shown: int = _SHOWN) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more ({len(names)} in all)" if more > 0 else "")


def _read(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise FileNotFoundError(f"weights: no such file: {path}")
    if not path.is_file():
        raise WeightsError(f"weights: expected a file, {path} is a folder")
    try:
        content: Any = load_foreign(path)
    except ValueError as error:
        raise WeightsError(f"weights: {error}") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    tensors = (
        {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        keys = abbreviate([str(key) for key in content]) if isinstance(content, Mapping) else ""
        raise WeightsError(
            f"weights: {path} holds no tensors by name, bare or under 'state_dict'"
            f" (it holds a {type(content).__name__}{f' of {keys}' if keys else ''})"
        )
    return tensors


def _recognise(tensors: Collection[str], complete: Collection[str], path: Path, name: str) -> str:
    """The prefix under which most of the backbone's keys are found."""
    best, found = _best_prefix(tensors, complete)
    if not found:
        raise WeightsError(
            f"weights: no key of {path} belongs to {name}: it holds {abbreviate(list(tensors))}. Recognised "
            f"are {name}'s names of torchvision, bare or under {', '.join(p for p in LAYOUTS if p)}; choose "
            "the --backbone the file was made for"
        )
    return best


def _best_prefix(tensors: Collection[str], complete: Collection[str]) -> tuple[str, int]:
    counts = {
        prefix: sum(_rename(key[len(prefix) :]) in complete for key in tensors if key.startswith(prefix))
        for prefix in LAYOUTS
    }
    best = max(counts, key=lambda prefix: counts[prefix])
    return best, counts[best]


def _check(
    path: Path,
    name: str,
    missing: list[str],
    unknown: list[str],
    mismatched: list[str],
    allow_partial: bool,
) -> None:
    problems = []
    if mismatched:
        problems.append(f"{len(mismatched)} of another shape: {abbreviate(mismatched)}")
    if not allow_partial:
        if missing:
            problems.append(f"{len(missing)} missing: {abbreviate(missing)}")
        if unknown:
            problems.append(f"{len(unknown)} unknown: {abbreviate(unknown)}")
    if problems:
        way_out = (
            "choose the --backbone the file was made for"
            if mismatched
            else "choose another --backbone or --stage, or pass --allow-partial (allow_partial=True) to "
            "leave random what is missing and leave out what is unknown"
        )
        raise WeightsError(
            f"weights: {path} does not fit {name}. Keys: {'; '.join(problems)}. To mend it, {way_out}"
        )


def _rename(key: str) -> str:
    """The name of a MobileNetV2 parameter in mmdet or mmpretrain as torchvision's; others as they are."""
    for theirs, ours in _MMDET_MOBILENET.items():
        if key.startswith(theirs):
            return ours + key[len(theirs) :]
    return key


def mmdet_mobilenet_prefixes() -> dict[str, str]:
    """Prefixes of MobileNetV2's parameter names: mmdet's (without `backbone.`) -> torchvision's."""
    table = {"conv1.conv.": "features.0.0.", "conv1.bn.": "features.0.1."}
    index = 1
    for layer, blocks in enumerate((1, 2, 3, 4, 3, 3, 1), start=1):
        steps = ("depthwise_conv", "linear_conv") if layer == 1 else _INVERTED_RESIDUAL
        for block in range(blocks):
            for number, step in enumerate(steps):
                theirs, ours = f"layer{layer}.{block}.{step}.", f"features.{index}.conv."
                last = step == "linear_conv"  # with its batch norm not a block of its own
                table[f"{theirs}conv."] = f"{ours}{number}." if last else f"{ours}{number}.0."
                table[f"{theirs}bn."] = f"{ours}{number + 1}." if last else f"{ours}{number}.1."
            index += 1
    return table | {"conv2.conv.": "features.18.0.", "conv2.bn.": "features.18.1."}


_MMDET_MOBILENET = mmdet_mobilenet_prefixes()
