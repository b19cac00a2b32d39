"""Filters on the geometry of masks, on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from sp_fast.ops import PackedMasks
from sp_fast.proposals.extents import whole_maps


def geometry_filter(
    masks: PackedMasks,
    valid: Tensor | None = None,
    *,
    min_center_height: float | None = None,
    max_box_width: float | None = None,
) -> Tensor:
    """Find masks that are neither near the top border nor nearly as wide as the image: bool [B, K].

    As in the authors' code, the centre is the mean index (from 0) of the rows that the mask occupies, and the
    width of its box is the number of columns it occupies. An empty mask's centre is 0.

    Args:
        masks: masks [B, K].
        valid: int [B, 2], height and width in cells of the valid part of each map; None: the whole map.
        min_center_height: the centre must be further down than this share of the height.
        max_box_width: the box must be narrower than this share of the width.
    """
    cells = masks.unpack()  # [B, K, H, W]
    if valid is None:
        valid = whole_maps(len(cells), masks.height, masks.width, masks.device)
    size = valid.double()  # [B, 2]
    keep = torch.ones(masks.shape, dtype=torch.bool, device=masks.device)
    if min_center_height is not None:
        rows = cells.any(-1)
        position = torch.arange(masks.height, device=masks.device)
        center = (rows * position).sum(-1).double() / rows.sum(-1).clamp(min=1)
        keep &= center > min_center_height * size[:, :1]
    if max_box_width is not None:
        keep &= cells.any(-2).sum(-1) < max_box_width * size[:, 1:]
    return keep
