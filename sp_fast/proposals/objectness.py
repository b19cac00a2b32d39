"""How much a mask looks like an object: stability, contrast with its surroundings, share of the border."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sp_fast.ops import PackedMasks

MARGIN = 0.1  # of the threshold, on both sides
_RING = 2  # cells around a mask
_WEIGHT = 0.5  # exponent of both contrasts and of 1 - border


def objectness(
    stability: Tensor, features: Tensor, colour: Tensor | None, border: Tensor, threshold: Tensor
) -> Tensor:
    """Score of masks, in [0, 1]: stability * sqrt(contrasts * (1 - border)) * exp(-threshold).

    The form and its numbers were chosen on coco_mini/train. Masks of low thresholds are preferred: they tend
    to hold the whole object rather than its core. What holds most of the image's border is a background.

    Args:
        stability: see `stability`.
        features: `contrast` of the features.
        colour: see `colour_contrast`; None: left out.
        border: see `border_share`.
        threshold: threshold of the saliency of each mask.
    """
    factors = features.clamp(min=0) / 2 * (1 - border)
    factors = factors if colour is None else factors * colour.clamp(min=0)
    return stability * factors**_WEIGHT * torch.exp(-threshold)


def border_share(masks: PackedMasks, valid: Tensor) -> Tensor:
    """Share of the cells along the border of each image that a mask holds, in [0, 1].

    Args:
        masks: [B, N].
        valid: bool [B, h, w], True in the valid part of each map, a rectangle.
    """
    outside = F.pad(~valid, (1, 1, 1, 1), value=True)
    border = PackedMasks.pack((valid & dilated(outside, 1)[:, 1:-1, 1:-1])[:, None])
    return _common(masks, border) / border.area().clamp(min=1)


def stability(masks: PackedMasks, higher: PackedMasks, lower: PackedMasks) -> Tensor:
    """How little masks change if the threshold of their saliency does, in [0, 1].

    The number of cells of a mask that stay if the threshold rises by MARGIN, over the number that it has if
    the threshold falls by MARGIN, up to two cells away. 0 for an empty mask.

    Args:
        masks: [...].
        higher: [...], cells whose saliency is at least the threshold plus MARGIN.
        lower: [...], cells whose saliency is at least the threshold minus MARGIN.
    """
    grown = PackedMasks.pack(dilated(masks.unpack(), _RING))
    stay, join = _common(masks, higher), _common(grown, lower)
    return stay / join.clamp(min=1)


def _common(first: PackedMasks, second: PackedMasks) -> Tensor:
    return PackedMasks(first.words & second.words, first.height, first.width).area()


def contrast(features: Tensor, masks: Tensor, inside: Tensor) -> Tensor:
    """1 - cosine of the mean features inside each mask and in a ring two cells wide around it, in [0, 2].

    0 without a ring.

    Args:
        features: [B, D, h, w]; zero beyond the valid part.
        masks: bool [B, N, h, w].
        inside: mean features inside the masks [B, N, D].
    """
    ring = dilated(masks, _RING) & ~masks & features.any(1, keepdim=True)
    outside = means_inside(features, ring)
    return torch.where(ring.any(-1).any(-1), 1 - F.cosine_similarity(inside, outside, dim=-1), 0)


def colour_contrast(colours: Tensor, masks: Tensor, valid: Tensor) -> Tensor:
    """Distance of the mean colours inside each mask and in a ring two cells wide around it; 0 without a ring.

    Args:
        colours: [B, 3, h, w].
        masks: bool [B, N, h, w].
        valid: bool [B, h, w], True in the valid part of each map.
    """
    ring = dilated(masks, _RING) & ~masks & valid[:, None]
    difference = means_inside(colours, masks) - means_inside(colours, ring)
    return torch.where(ring.any(-1).any(-1), difference.norm(dim=-1), 0)


def dilated(masks: Tensor, cells: int) -> Tensor:
    """Grow masks, bool [..., h, w], by a number of cells in all directions."""
    grown = masks
    for axis in (-2, -1):
        for _ in range(cells):
            before, grown = grown, grown.clone()
            length = masks.shape[axis] - 1
            grown.narrow(axis, 1, length).logical_or_(before.narrow(axis, 0, length))
            grown.narrow(axis, 0, length).logical_or_(before.narrow(axis, 1, length))
    return grown


def means_inside(values: Tensor, masks: Tensor) -> Tensor:
    """Mean of values [B, D, h, w] inside masks [B, N, h, w], bool or weights: fp32 [B, N, D]; 0 if empty."""
    weight = masks.flatten(2).float()
    with torch.autocast(values.device.type, enabled=False):
        total = weight @ values.float().flatten(2).transpose(1, 2)
    return total / weight.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
