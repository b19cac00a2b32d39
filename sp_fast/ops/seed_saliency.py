"""Saliency masks of seeds (Eq. 3-4)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sp_fast.ops import reference
from sp_fast.ops.checks import (
    FLOATS,
    INTS,
    check_choice,
    check_map,
    check_number,
    check_same_dtype,
    check_tensor,
    check_values,
)
from sp_fast.ops.extension import COMPILED
from sp_fast.ops.packed_masks import PackedMasks
from sp_fast.ops.reference import SeedSaliency


def _as_grids(grid: Sequence[int] | Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    grids = [grid] if len(grid) == 2 and all(isinstance(n, int) for n in grid) else list(grid)
    checked = []
    for pair in grids:
        if (
            not isinstance(pair, Sequence)
            or len(pair) != 2
            or not all(isinstance(n, int) and n >= 1 for n in pair)
        ):
            raise ValueError(f"grid: expected (H', W') of ints of at least 1, or a list of such, got {grid}")
        checked.append((pair[0], pair[1]))
    if not checked:
        raise ValueError("grid: expected at least one (H', W'), got an empty list")
    return checked


def seed_saliency(
    features: Tensor,
    grid: Sequence[int] | Sequence[Sequence[int]] | None = None,
    *,
    seeds: Tensor | None = None,
    valid: Tensor | None = None,
    similarity: str = "dot",
    threshold: float = 0.5,
) -> SeedSaliency:
    """Masks of the cells that are similar to each seed (Eq. 3-4 of Saliency Prompt, CVPR 2023).

    The seeds are the adaptive average pooling of the valid part of each map on the grid. The similarity
    y of a seed with all valid cells is normalised linearly, (y - min) / (max - min); the mask is
    y >= threshold, the score the mean of y inside the mask. Where max == min, or a value is not finite,
    the mask is empty and the score 0. Nothing here is differentiated.

    Args:
        features: fp32, fp16 or bf16 [B, D, H, W].
        grid: (H', W') or a list of such; M = sum of H' W', seeds row-major, grids in the order given.
        seeds: [B, M, D] of one's own, instead of a grid; dtype of `features`.
        valid: int32 or int64 [B, 2], height and width in cells of the part of each map that is image, at
            least 1; the rest is padding and takes part in nothing. None: all of it.
        similarity: "dot", or "cosine" (vectors divided by max(norm, 1e-8)).
        threshold: in [0, 1].

    Returns:
        SeedSaliency(masks: PackedMasks [B, M], score: fp32 [B, M], seeds: [B, M, D]).

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong rank, shape, device or value; both or none of `grid` and `seeds`.
    """
    check_tensor("features", features, ("B", "D", "H", "W"), FLOATS)
    check_map("features", features)
    batch, channels, height, width = features.shape
    check_choice("similarity", similarity, ("dot", "cosine"))
    check_number("threshold", threshold, 0, 1)
    if (grid is None) == (seeds is None):
        raise ValueError("grid, seeds: expected exactly one of the two")
    if valid is not None:
        check_tensor("valid", valid, (batch, 2), INTS, like=features)
    if seeds is not None:
        check_tensor("seeds", seeds, (batch, "M", channels), FLOATS, like=features)
        check_same_dtype("seeds", seeds, "features", features)
    grids = None if grid is None else _as_grids(grid)
    features = features.detach()
    if not COMPILED:
        if valid is not None:
            check_values("valid: heights", valid[:, 0], 1, height)
            check_values("valid: widths", valid[:, 1], 1, width)
        given = None if seeds is None else seeds.detach()
        return reference.seed_saliency(
            features, grids, seeds=given, valid=valid, similarity=similarity, threshold=threshold
        )
    if seeds is None:
        assert grids is not None
        seeds = torch.ops.sp_fast.pool_seeds(features, [n for pair in grids for n in pair], valid)
    seeds = seeds.detach()
    words, score = torch.ops.sp_fast.seed_saliency(
        features, seeds, valid, similarity == "cosine", float(threshold)
    )
    return SeedSaliency(PackedMasks(words, height, width), score, seeds)
