"""Inputs of deformable attention."""

import torch
from torch import Tensor


def inside_cells(
    sides: list[tuple[int, int]],
    random: torch.Generator,
    *,
    batch: int,
    queries: int,
    heads: int,
    points: int,
    depth: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value, sizes, locations and weights; the last two are fp32, or fp64 if `dtype` is.

    Points lie between the centres of cells, some of them outside the map, and never within a tenth of the
    lines through the centres, where the gradient of a location jumps.
    """
    sizes = torch.tensor(sides)
    wide = torch.promote_types(dtype, torch.float32)
    shape = (batch, queries, heads, len(sides), points)
    extent = sizes.flip(1)[:, None].double()
    cell = (torch.rand(*shape, 2, generator=random, dtype=torch.float64) * (extent + 3)).floor() - 2
    within = 0.1 + 0.8 * torch.rand(*shape, 2, generator=random, dtype=torch.float64)
    locations = (cell + within + 0.5) / extent
    keys = int(sizes.prod(1).sum())
    value = torch.randn(batch, keys, heads, depth, generator=random, dtype=torch.float64)
    weights = torch.rand(shape, generator=random, dtype=torch.float64)
    return value.to(dtype), sizes, locations.to(wide), weights.to(wide)
