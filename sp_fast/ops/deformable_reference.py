"""Multi-scale deformable attention in plain PyTorch, one level at a time; see `sp_fast.ops.reference`.

The sizes of the levels are read by the host.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from sp_fast.ops.reference import accumulate


def deformable_attention(value: Tensor, sizes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Deformable DETR, Eq. 3, without its projections: [B, Q, M * D]."""
    batch, _, heads, depth = value.shape
    levels = _levels(value, sizes, locations, weights)
    result = sum(
        (F.grid_sample(maps, grid, align_corners=False) * share).sum(-1) for maps, grid, share in levels
    )
    return result.view(batch, heads * depth, locations.shape[1]).transpose(1, 2).to(value.dtype).contiguous()


def deformable_attention_backward(
    grad: Tensor, value: Tensor, sizes: Tensor, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights; `grad` [B, Q, M * D]."""
    batch, _, heads, depth = value.shape
    by_head = accumulate(grad).unflatten(2, (heads, depth)).permute(0, 2, 3, 1).flatten(0, 1)[..., None]
    of_value, of_locations, of_weights = [], [], []
    for maps, grid, share in _levels(value, sizes, locations, weights):
        of_weights.append((by_head * F.grid_sample(maps, grid, align_corners=False)).sum(1))
        of_maps, of_grid = torch.ops.aten.grid_sampler_2d_backward(
            by_head * share, maps, grid, 0, 0, False, [True, True]
        )
        of_value.append(of_maps.flatten(2))
        of_locations.append(2 * of_grid)
    grad_value = torch.cat(of_value, 2).unflatten(0, (batch, heads)).permute(0, 3, 1, 2)
    grad_locations, grad_weights = (
        torch.stack(parts, 2).unflatten(0, (batch, heads)).transpose(1, 2).contiguous()
        for parts in (of_locations, of_weights)
    )
    return grad_value.to(value.dtype).contiguous(), grad_locations, grad_weights


def _levels(
    value: Tensor, sizes: Tensor, locations: Tensor, weights: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Maps [B M, D, H, W], `grid_sample`'s grid [B M, Q, P, 2], and weights [B M, 1, Q, P] of each level."""
    sides = sizes.tolist()
    cells = [height * width for height, width in sides]
    if sum(cells) != value.shape[1] or any(side < 1 for pair in sides for side in pair):
        raise ValueError(
            f"sizes: expected heights and widths of at least 1 and {value.shape[1]} cells in all, as in "
            f"value, got {sides}"
        )
    # Points so far outside, or NaN, read nothing; grid_sample would spread the NaN.
    near = ((locations > -1) & (locations < 2)).all(-1, keepdim=True)
    grids = (2 * torch.where(near, locations, -1) - 1).transpose(1, 2).flatten(0, 1)
    shares = weights.transpose(1, 2).flatten(0, 1)
    maps = accumulate(value).permute(0, 2, 3, 1).flatten(0, 1).split(cells, 2)
    for level, side in enumerate(sides):
        yield maps[level].unflatten(2, side), grids[:, :, level], shares[:, None, :, level]
