"""Loading weights in full, or refusing them with a list of what does not fit."""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from sp_fast.weights.layouts import LAYOUTS, Translated, translate
from sp_fast.weights.unpickle import load_foreign

_SHOWN = 8


class WeightsError(ValueError):
    """A weights file that cannot be read, or does not fit the model."""


@dataclass(frozen=True)
class WeightsReport:
    """Report of loading a checkpoint.

    Attributes:
        loaded: number of parameters and buffers that were set.
        missing: names that are not in the file; they stay random.
        unknown: keys of the file that the model does not have; they are ignored.
        mismatched: names of tensors of another shape, with both shapes; they stay random.
        dropped: parts other than the backbone that were left out, such as `fc` or `rpn_head`.
        layout: where the key layout of a backbone's file comes from.
    """

    loaded: int
    missing: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    layout: str = ""

    def __str__(self) -> str:
        parts = [f"{self.loaded} tensors loaded{f' ({self.layout} layout)' if self.layout else ''}"]
        for title, names in (
            ("left out", self.dropped),
            ("missing and left random", self.missing),
            ("unknown and left out", self.unknown),
            ("of another shape and left random", self.mismatched),
        ):
            if names:
                parts.append(f"{title}: {_abbreviate(names)}")
        return "; ".join(parts)


def read_state(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read the tensors of a weights file by name, on the CPU, without running code in the file.

    They may be at the top level, or under `state_dict`, `model` or `teacher` (DINO's). A leading `module.`,
    from data-parallel training, is dropped from the keys.

    Raises:
        WeightsError: not a weights file, or one without named tensors.
        FileNotFoundError: no such file.
    """
    return read_with_state(path)[1]


def read_with_state(path: str | os.PathLike[str]) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """Read a weights file once: its whole content, and its tensors; see `read_state`."""
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"weights: no such file: {path}")
    try:
        loaded: Any = load_foreign(path)
    except ValueError as error:
        raise WeightsError(f"weights: {error}") from error
    content: Mapping[str, Any] = loaded if isinstance(loaded, Mapping) else {}
    inside = (content.get(key) for key in ("state_dict", "model", "teacher"))
    found = next((one for one in inside if isinstance(one, Mapping)), content)
    state: OrderedDict[str, Tensor] = OrderedDict(
        (key.removeprefix("module."), value)
        for key, value in found.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    )
    if not state:
        keys = f" with the keys {_abbreviate([str(key) for key in found])}" if found else ""
        raise WeightsError(
            f"weights: {path} has no named tensors, at the top level or under 'state_dict', 'model' or "
            f"'teacher' (it contains a {type(loaded).__name__}{keys})"
        )
    # Versions of the modules, by which load_state_dict converts older layouts.
    state._metadata = {  # type: ignore[attr-defined]
        re.sub(r"^module(\.|$)", "", key): value for key, value in getattr(found, "_metadata", {}).items()
    }
    return content, state


def load_state(
    model: nn.Module,
    state: Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    name: str = "the model",
    allow: Iterable[str] = (),
    allow_partial: bool = False,
    unknown: Iterable[str] = (),
    remedy: str = "choose a checkpoint of this model, or the config that the checkpoint was made with",
) -> WeightsReport:
    """Load the tensors of a file into a model, or leave the model unchanged.

    BatchNorm's `num_batches_tracked` may always be missing. The model keeps its precision.

    Args:
        model: model without a data-parallel wrapper.
        state: tensors from `read_state`.
        path: path of the file, for messages.
        name: name of the model, for messages.
        allow: regular expressions, matched from the start of a name (a prefix is enough): matching tensors
            may be missing, unknown or of another shape.
        allow_partial: accept all missing and unknown tensors.
        unknown: further keys of the file that are not in `state`.
        remedy: advice for the error message.

    Raises:
        WeightsError: differences that are not allowed; the message lists them.
    """
    own = model.state_dict()
    missing = sorted(key for key in own.keys() - state.keys() if not key.endswith("num_batches_tracked"))
    surplus = [*(key for key in state if key not in own), *unknown]
    shapes = {
        key: f"{key} (file {list(state[key].shape)}, model {list(own[key].shape)})"
        for key in sorted(own.keys() & state.keys())
        if own[key].shape != state[key].shape
    }
    patterns = [re.compile(pattern) for pattern in allow]
    problems = []
    for kind, keys in (
        ("of another shape", shapes),
        ("missing", () if allow_partial else missing),
        ("unknown", () if allow_partial else surplus),
    ):
        refused = [shapes.get(key, key) for key in keys if not any(one.match(key) for one in patterns)]
        if refused:
            problems.append(f"{len(refused)} {kind}: {_abbreviate(refused)}")
    if problems:
        raise WeightsError(
            f"weights: {path} does not fit {name}; nothing was loaded. Keys: {'; '.join(problems)}. "
            f"To fix it, {remedy}"
        )
    fitting = OrderedDict((key, state[key]) for key in own if key in state and key not in shapes)
    fitting._metadata = getattr(state, "_metadata", {})  # type: ignore[attr-defined]
    model.load_state_dict(fitting, strict=False)
    return WeightsReport(len(fitting), tuple(missing), tuple(surplus), tuple(shapes.values()))


_CHOOSE = (
    "choose the backbone that the file was made for (--backbone of `sp-fast propose`, another CONFIG of "
    "`sp-fast train`)"
)


def load_backbone_weights(
    backbone: nn.Module, path: str | os.PathLike[str], allow_partial: bool = False
) -> WeightsReport:
    """Load a checkpoint into a backbone in place.

    Recognised key layouts, with or without `module.` before them: torchvision, DenseCL and SwAV (bare names),
    MoCo-v2 (`encoder_q.`), mmselfsup, mmpretrain and mmdet (`backbone.`, and their MobileNetV2 names). For
    models of timm: timm's, those of the original repositories that timm converts, EfficientNet-PyTorch's, and
    Hugging Face's of ViT, DINOv2, DINOv3 and ConvNeXt. Heads and other parts of a detector are dropped, and
    so are stages that the backbone was built without. No code in the file is run.

    Args:
        backbone: backbone from `build_backbone`, or a detector's backbone with torchvision's parameter names.
        path: path of the checkpoint.
        allow_partial: accept missing and unknown keys; the report, kept as `backbone.weights_report`, lists
            them.

    Raises:
        WeightsError: not a checkpoint of tensors; missing or unknown keys (unless `allow_partial`), or shapes
            that do not match; the message lists them. The backbone is then unchanged.
        FileNotFoundError: no such file.
    """
    tensors = read_state(path)
    body: nn.Module = getattr(backbone, "body", backbone)
    name: str = getattr(backbone, "name", type(backbone).__name__)
    own = body.state_dict().keys()
    translated: Callable[[Mapping[str, Tensor]], Translated] = getattr(
        backbone, "translate", partial(translate, names=getattr(backbone, "complete_keys", own))
    )
    layout, state, unknown, dropped = translated(tensors)
    if not state:
        raise WeightsError(
            f"weights: no key of {path} belongs to {name}: it holds {_abbreviate(tensors)}. Expected "
            f"the names of {_named_by(name)}; {_CHOOSE}"
        )
    report = load_state(
        body,
        {key: value for key, value in state.items() if key in own},  # the others: stages it was built without
        path,
        name=name,
        allow_partial=allow_partial,
        unknown=unknown,
        remedy=f"{_CHOOSE}, or a --stage that it holds; or, if no shape differs, pass "
        "--allow-partial (allow_partial=True) to keep missing parameters random and ignore unknown keys",
    )
    report = replace(report, layout=layout, dropped=tuple(dropped))
    backbone.weights_report = report  # type: ignore[assignment]
    return report


def _named_by(backbone: str) -> str:
    if backbone.startswith("timm:"):
        return f"timm, of the original repository or of Hugging Face for {backbone}"
    return f"torchvision for {backbone}, bare or under {', '.join(prefix for prefix in LAYOUTS if prefix)}"


def closest_network(
    path: str | os.PathLike[str], networks: Mapping[str, Mapping[str, tuple[int, ...]]]
) -> str:
    """Find the network whose parameters differ least from those of a checkpoint.

    Args:
        path: checkpoint in any layout that `load_backbone_weights` reads.
        networks: candidates by name, each with the shape of every parameter by name.

    Raises:
        WeightsError: not a checkpoint of tensors, or without any parameter of the networks.
        FileNotFoundError: no such file.
    """
    tensors = read_state(path)
    differences: dict[str, int] = {}
    for network, shapes in networks.items():
        _, state, unknown, _ = translate(tensors, shapes)
        fitting = sum(tuple(value.shape) == shapes[key] for key, value in state.items())
        if fitting:
            differences[network] = len(shapes) + len(state) + len(unknown) - 2 * fitting
    if not differences:
        raise WeightsError(
            f"weights: {path} has no parameter of {', '.join(networks)}: it holds {_abbreviate(tensors)}"
        )
    return min(differences, key=lambda network: differences[network])


def _abbreviate(names: Collection[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more ({len(names)} in all)" if len(names) > _SHOWN else ""
    return ", ".join(list(names)[:_SHOWN]) + more
