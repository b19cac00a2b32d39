"""Seeds by bilinear resizing of padded feature maps, and the saliency of seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sp_fast.ops.reference import normalized_saliency


def resized_seeds(features: Tensor, scales: Sequence[float], valid: Tensor) -> tuple[Tensor, Tensor]:
    """Resize features bilinearly to seeds, and number the seeds of each image.

    A map whose valid part has h x w cells gives floor(s h) x floor(s w) seeds at scale s. Seeds beyond these
    are zero, which makes empty masks. As no scale is above 1, the others do not depend on the padding.

    Args:
        features: [B, D, H, W], finite beyond the valid part.
        scales: factors in (0, 1].
        valid: int64 [B, 2], height and width in cells of the valid part.

    Returns:
        seeds [B, M, D], scale by scale in row-major order; index int64 [B, M], -1 for seeds of the padding.
    """
    height, width = features.shape[2:]
    seeds, indices = [], []
    offset = torch.zeros_like(valid[:, :1])  # [B, 1], number of seeds of the previous scales
    for scale in scales:
        rows, columns = math.floor(height * scale), math.floor(width * scale)
        own = torch.floor(valid.double() * scale).long()  # [B, 2]
        if rows and columns:
            resized = features
            if scale != 1:
                resized = F.interpolate(features, scale_factor=scale, mode="bilinear", align_corners=False)
            place = torch.arange(rows * columns, device=features.device)
            row, column = place // columns, place % columns
            real = (row < own[:, :1]) & (column < own[:, 1:])  # [B, M]
            seeds.append(torch.where(real[..., None], resized.flatten(2).transpose(1, 2), 0))
            indices.append(torch.where(real, offset + row * own[:, 1:] + column, -1))
        offset = offset + own[:, :1] * own[:, 1:]
    if not seeds:
        return features.new_zeros(len(features), 0, features.shape[1]), offset.new_zeros(len(features), 0)
    return torch.cat(seeds, dim=1), torch.cat(indices, dim=1)


def saliency_maps(features: Tensor, seeds: Tensor, valid: Tensor | None, similarity: str) -> Tensor:
    """Saliency (Eq. 4) of seeds [B, M, D] over features [B, D, H, W]: fp32 [B, M, H, W], 0 in the padding.

    0 everywhere for a seed without saliency, see `seed_saliency`.
    """
    y, defined = normalized_saliency(features, seeds, valid, similarity)
    return torch.where(defined, y, 0).unflatten(-1, features.shape[2:])
