"""Class layers of a checkpoint for a model of other classes: rows are matched by the names of the classes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor


def named_classes(checkpoint: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The classes of a checkpoint of mmengine (or of mmdet 2), or None where it names none."""
    meta = checkpoint.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    data = meta.get("dataset_meta")
    names = (data or {}).get("classes") if isinstance(data or {}, Mapping) else None
    names = names or meta.get("CLASSES")
    return tuple(map(str, names)) if isinstance(names, (list, tuple)) and names else None


def matching_classes(path: str, theirs: Sequence[str], ours: Sequence[str], *, complete: bool) -> str:
    """Says how the classes of a file match the model's.

    Raises:
        ValueError: `complete`, and the file does not have all of the model's classes.
    """
    new = [name for name in ours if name not in theirs]
    if complete and new:
        raise ValueError(
            f"{path}: expected a model of the classes {', '.join(ours)}, got one of {', '.join(theirs)}, "
            f"which does not have {', '.join(new)}"
        )
    known = [name for name in ours if name in theirs]
    note = f"class layers of {path}, matched by name: {', '.join(known) or 'none'}"
    return note + (f"; new, and left random: {', '.join(new)}" if new else "")


def match_rows(
    state: dict[str, Tensor],
    own: Mapping[str, Tensor],
    heads: Iterable[str],
    classes: tuple[Sequence[str], Sequence[str]],
) -> None:
    """Puts the rows of a file's class layers in the order of the model's classes.

    The rows of classes that the file does not have keep the model's own values. Layers with a row per class,
    with one for the background after them, or with four numbers per class (`fc_reg`, boxes) are matched;
    others that depend on the number of classes are left out. Boxes for all classes at once stay as they are.

    Args:
        state: tensors of the file, changed in place.
        own: tensors of the model.
        heads: patterns of the names of the class layers.
        classes: names of the file's classes and of the model's.
    """
    patterns = [re.compile(head) for head in heads]
    theirs, ours = classes
    for name, tensor in list(state.items()):
        if name not in own or not any(pattern.match(name) for pattern in patterns):
            continue
        boxes = ".fc_reg." in name
        if boxes and len(tensor) == len(own[name]) == 4:
            continue
        layout = _layout(tensor, len(theirs), boxes=boxes)
        if (
            layout
            and layout == _layout(own[name], len(ours), boxes=boxes)
            and tensor.shape[1:] == own[name].shape[1:]
        ):
            state[name] = _matched(tensor, own[name], theirs, ours, layout)
        elif not (len(tensor) % len(theirs) or len(own[name]) % len(ours)):
            del state[name]


def _layout(tensor: Tensor, classes: int, *, boxes: bool) -> tuple[int, int] | None:
    """Rows per class, and rows after them."""
    for per_class, more in ((4, 0),) if boxes else ((1, 0), (1, 1)):
        if len(tensor) == per_class * classes + more:
            return per_class, more
    return None


def _matched(
    tensor: Tensor, own: Tensor, theirs: Sequence[str], ours: Sequence[str], layout: tuple[int, int]
) -> Tensor:
    per_class, more = layout
    rows = own.detach().cpu().clone().to(tensor.dtype)
    for number, name in enumerate(ours):
        if name in theirs:
            first = theirs.index(name) * per_class
            rows[number * per_class : (number + 1) * per_class] = tensor[first : first + per_class]
    if more:
        rows[-more:] = tensor[-more:]
    return rows
