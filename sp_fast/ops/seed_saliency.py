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
    check_grids,
    check_map,
    check_number,
    check_same_dtype,
    check_tensor,
    check_values,
)
from sp_fast.ops.extension import register
from sp_fast.ops.packed_masks import PackedMasks
from sp_fast.ops.packing import words_for
from sp_fast.ops.reference import SeedSaliency


def _pairs(grid: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(grid[::2], grid[1::2], strict=True))


def _fake_seeds(features: Tensor, grid: Sequence[int], valid: Tensor | None) -> Tensor:
    seeds = sum(rows * columns for rows, columns in _pairs(grid))
    return features.new_empty(features.shape[0], seeds, features.shape[1])


def _reference_seeds(features: Tensor, grid: Sequence[int], valid: Tensor | None) -> Tensor:
    _check_valid(features, valid)
    return reference.pool_seeds(features, _pairs(grid), valid)


def _fake(
    features: Tensor, seeds: Tensor, valid: Tensor | None, cosine: bool, threshold: float
) -> tuple[Tensor, Tensor]:
    batch, number = seeds.shape[:2]
    words = words_for(features.shape[2], features.shape[3])
    return (
        features.new_empty(batch, number, words, dtype=torch.int32),
        features.new_empty(batch, number, dtype=torch.float32),
    )


def _reference(
    features: Tensor, seeds: Tensor, valid: Tensor | None, cosine: bool, threshold: float
) -> tuple[Tensor, Tensor]:
    _check_valid(features, valid)
    similarity = "cosine" if cosine else "dot"
    masks, score = reference.saliency_of_seeds(features, seeds, valid, similarity, threshold)
    return masks.words, score


def _check_valid(features: Tensor, valid: Tensor | None) -> None:
    if valid is not None:
        check_values("valid: heights", valid[:, 0], 1, features.shape[2])
        check_values("valid: widths", valid[:, 1], 1, features.shape[3])


_pool_seeds = register("pool_seeds", _fake_seeds, _reference_seeds)
_op = register("seed_saliency", _fake, _reference)


def seed_saliency(
    features: Tensor,
    grid: Sequence[int] | Sequence[Sequence[int]] | None = None,
    *,
    seeds: Tensor | None = None,
    valid: Tensor | None = None,
    similarity: str = "dot",
    threshold: float = 0.5,
) -> SeedSaliency:
    """Mask the cells that are similar to each seed (Eq. 3-4 of Saliency Prompt, CVPR 2023).

    The seeds are the adaptive average pooling of the valid part of each map to the grid. The similarity
    y of a seed with all valid cells is normalised linearly, (y - min) / (max - min); the mask is
    y >= threshold, and the score is the mean of y inside the mask. If max == min, or a value is not
    finite, the mask is empty and the score 0. Not differentiable.

    Args:
        features: feature maps, fp32, fp16 or bf16 [B, D, H, W].
        grid: (H', W') or a list of these pairs; M is the sum of H' W'. Seeds are in row-major order, grids
            in the order given.
        seeds: seeds [B, M, D] to use instead of a grid, in the dtype of `features`.
        valid: height and width in cells of the part of each map without padding, int32 or int64 [B, 2],
            at least 1. None: no padding.
        similarity: "dot", or "cosine" (vectors divided by max(norm, 1e-8)).
        threshold: smallest y inside a mask, in [0, 1].

    Returns:
        SeedSaliency(masks: PackedMasks [B, M], score: fp32 [B, M], seeds: [B, M, D]).

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong rank, shape, device or value, or both or neither of `grid` and
            `seeds` are given.
    """
    check_tensor("features", features, ("B", "D", "H", "W"), FLOATS)
    check_map("features", features)
    batch, channels, height, width = features.shape
    check_choice("similarity", similarity, ("dot", "cosine"))
    check_number("threshold", threshold, 0, 1)
    if (grid is None) == (seeds is None):
        raise ValueError(
            f"grid, seeds: expected exactly one of the two, got {'neither' if grid is None else 'both'}"
        )
    if valid is not None:
        check_tensor("valid", valid, (batch, 2), INTS, like=features)
    if seeds is not None:
        check_tensor("seeds", seeds, (batch, "M", channels), FLOATS, like=features)
        check_same_dtype("seeds", seeds, "features", features)
    features = features.detach()
    if seeds is None:
        sides = [side for pair in check_grids(grid) for side in pair]
        seeds = _pool_seeds(features, sides, valid)
    seeds = seeds.detach()
    words, score = _op(features, seeds, valid, similarity == "cosine", float(threshold))
    return SeedSaliency(PackedMasks(words, height, width), score, seeds)
