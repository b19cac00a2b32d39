"""Connected parts of masks."""

from __future__ import annotations

import torch
from torch import Tensor

from sp_fast.ops import reference
from sp_fast.ops.checks import check_int
from sp_fast.ops.extension import register
from sp_fast.ops.packed_masks import PackedMasks, check_masks


def _fake(
    words: Tensor, height: int, width: int, max_parts: int, min_area: int, connectivity: int
) -> tuple[Tensor, Tensor]:
    leading = words.shape[:-1]
    return (
        words.new_empty(*leading, max_parts, words.shape[-1]),
        words.new_empty(leading, dtype=torch.int64),
    )


def _reference(
    words: Tensor, height: int, width: int, max_parts: int, min_area: int, connectivity: int
) -> tuple[Tensor, Tensor]:
    parts, count = reference.connected_parts(
        PackedMasks(words, height, width), max_parts=max_parts, min_area=min_area, connectivity=connectivity
    )
    return parts.words, count


_op = register("connected_parts", _fake, _reference)


def connected_parts(
    masks: PackedMasks, *, max_parts: int = 8, min_area: int = 1, connectivity: int = 8
) -> tuple[PackedMasks, Tensor]:
    """Find the largest connected parts of each mask. Not differentiable.

    Args:
        masks: PackedMasks [...].
        max_parts: largest number of parts to return per mask, P, at least 1.
        min_area: smallest area of a part, in cells.
        connectivity: 8: cells that share an edge or a corner are connected; 4: only those that share an edge.

    Returns:
        The parts, PackedMasks [..., P], the largest first, equal areas by their first cell in row-major
        order, padded with empty masks; and the number of parts found, at most P, int64 [...].

    Raises:
        TypeError: an argument has a wrong type.
        ValueError: an argument has a wrong value, or the masks have more than 2^30 cells each.
    """
    check_masks("masks", masks)
    check_int("max_parts", max_parts, 1)
    check_int("min_area", min_area, 0)
    check_int("connectivity", connectivity, 4)
    if connectivity not in (4, 8):
        raise ValueError(f"connectivity: expected 4 or 8, got {connectivity}")
    words, count = _op(masks.words, masks.height, masks.width, max_parts, min_area, connectivity)
    return PackedMasks(words, masks.height, masks.width), count
