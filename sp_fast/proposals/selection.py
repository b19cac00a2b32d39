"""The proposals of a batch, and how rows of scored masks become proposals."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sp_fast.ops import PackedMasks
from sp_fast.ops.take_proposals import take_proposals


@dataclass(frozen=True)
class Proposals:
    """Proposals of a batch, best first, padded to K = max_masks per image.

    Attributes:
        masks: [B, K] at the size of the feature map, or of the finest one; empty past `count`.
        score: fp32 [B, K]; 0 past `count`. Mean saliency inside the mask (decayed by matrix NMS), or, with
            `ranking="objectness"`, its `objectness`.
        seeds: [B, K, D], vectors that the masks were made from, or, with `ranking="objectness"`, mean
            features inside the masks; 0 past `count`.
        seed_index: int64 [B, K], index of the seed among the image's seeds: row-major, grid by grid (or scale
            by scale, size by size) in the order given; -1 past `count`. It does not depend on the padding.
        count: int64 [B], number of proposals.
        valid: int64 [B, 2], height and width in cells of the valid part of each map; None: the whole map.
        threshold: fp32 [B, K], least saliency inside each mask; 0 past `count`.
        saliency: fp32 [B, K, H, W], the saliency of each mask; where it is a part of a larger mask, 0 in the
            other parts. Only with `ranking="objectness"`; None: see `SaliencyProposer.saliency`.
    """

    masks: PackedMasks
    score: Tensor
    seeds: Tensor
    seed_index: Tensor
    count: Tensor
    valid: Tensor | None
    threshold: Tensor
    saliency: Tensor | None = None


def best(score: Tensor, most: int) -> Tensor:
    """Indices of the finite scores in descending order, ties by index: [B, most], padded with -1."""
    ordered, order = torch.sort(score, dim=1, descending=True, stable=True)
    order = torch.where(torch.isfinite(ordered), order, -1)[:, :most]
    return nn.functional.pad(order, (0, most - order.shape[1]), value=-1)


def select(rows: Proposals, chosen: Tensor) -> Proposals:
    """Take rows as proposals: int64 [B, K], -1 for none. The `count` of `rows` is not used."""
    masks, score, seeds, count = take_proposals(rows.masks, rows.score, rows.seeds, chosen)
    index, threshold = (_taken(values, chosen) for values in (rows.seed_index, rows.threshold))
    return Proposals(
        masks,
        score,
        seeds,
        torch.where(chosen >= 0, index, -1),
        count,
        rows.valid,
        threshold,
        None if rows.saliency is None else _taken(rows.saliency, chosen),
    )


def _taken(values: Tensor, chosen: Tensor) -> Tensor:
    """Rows `chosen` [B, K] of values [B, M, ...]; zeros for -1."""
    if values.shape[1] == 0:
        return values.new_zeros(*chosen.shape, *values.shape[2:])
    there = (chosen >= 0).reshape(*chosen.shape, *[1] * (values.dim() - 2))
    return torch.where(there, rows_of(values, chosen), 0)


def rows_of(values: Tensor, index: Tensor) -> Tensor:
    """Take rows `index` [B, N] of values [B, M, ...]; negative ones take the first."""
    image = torch.arange(len(values), device=values.device)[:, None]
    return values[image, index.clamp(min=0)]
