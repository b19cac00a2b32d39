"""Images at several sizes, and maps of one size brought to the grid of another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from sp_fast.proposals.extents import Size, inside, pad_batch


def resized(image: Tensor, longer: int, shorter: int) -> Tensor:
    """Resize an image [3, H, W] to the limits of its sides, in pixels, with antialiasing.

    The aspect ratio is kept, so that one of the sides has its limit.
    """
    return resized_to(image, fitted((image.shape[-2], image.shape[-1]), longer, shorter))


def resized_to(image: Tensor, size: Size) -> Tensor:
    """Resize an image [3, H, W] to a height and width, with antialiasing."""
    return image if size == image.shape[-2:] else vision.resize(image, list(size), antialias=True)


def fitted(size: Size, longer: int, shorter: int) -> Size:
    """Height and width scaled to the limits of the longer and the shorter side."""
    scale = min(longer / max(size), shorter / min(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def cell_colours(images: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Mean RGB of each cell in 0..1, where image b has sizes[b] cells: fp32 [B, 3, h, w], padded with 0."""
    pooled = [
        F.adaptive_avg_pool2d(image.float() / 255, size) for image, size in zip(images, sizes, strict=True)
    ]
    return pad_batch(pooled)[0]


def to_grid(maps: Tensor, valid: Tensor, size: tuple[int, int], target: Tensor) -> Tensor:
    """Resize the valid part of maps bilinearly to the valid part of another grid; the rest is 0.

    Args:
        maps: floating point [B, N, h, w].
        valid: int64 [B, 2], height and width of the valid part of the maps.
        size: height and width of the grid, with its padding.
        target: int64 [B, 2], height and width of the valid part of the grid.

    Returns:
        [B, N, *size].
    """
    y, x = (
        _positions(size[axis], valid[:, axis], target[:, axis], maps.shape[2 + axis]) for axis in (0, 1)
    )  # [B, H], [B, W]
    where = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)  # [B, H, W, 2]
    found = F.grid_sample(maps, where.to(maps.dtype), "bilinear", "border", align_corners=True)
    return found * inside(found, target)[:, None]


def _positions(cells: int, valid: Tensor, target: Tensor, padded: int) -> Tensor:
    """Where the centres of cells fall in maps, as `grid_sample` with aligned corners counts: [B, cells]."""
    center = torch.arange(cells, device=valid.device) + 0.5
    place = center * (valid / target)[:, None] - 0.5
    place = place.clamp(min=0).minimum((valid - 1)[:, None])
    return 2 * place / max(padded - 1, 1) - 1
