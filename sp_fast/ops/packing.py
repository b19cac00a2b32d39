"""Packing of binary masks, 32 cells per word, in plain PyTorch: the reference for PackedMasks."""

from __future__ import annotations

import torch
from torch import Tensor


def words_for(height: int, width: int) -> int:
    """Number of 32-bit words that hold height * width cells."""
    return (height * width + 31) // 32


def _bit_weights(device: torch.device) -> Tensor:
    """Value of bit k in two's complement, int64 [32]: the sum over the set bits is the int32 word."""
    weights = torch.ones(32, dtype=torch.int64, device=device) << torch.arange(32, device=device)
    return torch.where(weights == 1 << 31, -weights, weights)


def pack_masks(masks: Tensor) -> Tensor:
    """Pack bool [..., H, W] into words, int32 [..., W32]."""
    height, width = masks.shape[-2:]
    cells = masks.reshape(*masks.shape[:-2], height * width)
    padding = words_for(height, width) * 32 - height * width
    cells = torch.nn.functional.pad(cells, (0, padding))
    cells = cells.reshape(*masks.shape[:-2], words_for(height, width), 32)
    return (cells * _bit_weights(masks.device)).sum(-1).to(torch.int32)


def unpack_masks(words: Tensor, height: int, width: int) -> Tensor:
    """Unpack words, int32 [..., W32], to bool [..., H, W]."""
    bits = torch.arange(32, dtype=torch.int32, device=words.device)
    cells = (words.unsqueeze(-1) >> bits) & 1  # [..., W32, 32]
    leading = words.shape[:-1]
    cells = cells.reshape(*leading, words.shape[-1] * 32)[..., : height * width]
    return cells.reshape(*leading, height, width).to(torch.bool)


def mask_areas(words: Tensor) -> Tensor:
    """Number of bits set in each mask, int32 [...]."""
    bits = torch.arange(32, dtype=torch.int32, device=words.device)
    return ((words.unsqueeze(-1) >> bits) & 1).sum((-2, -1), dtype=torch.int32)


def mask_boxes(words: Tensor, height: int, width: int) -> Tensor:
    """Tight boxes (xyxy, half-open, in cells), int32 [..., 4]; zeros for an empty mask."""
    masks = unpack_masks(words, height, width)
    columns, rows = masks.any(-2), masks.any(-1)
    sides = [_first(columns), _first(rows), _past_last(columns), _past_last(rows)]
    return torch.stack(sides, dim=-1)


def _first(occupied: Tensor) -> Tensor:
    """Index of the first True along the last dimension, 0 if there is none; int32 [...]."""
    n = occupied.shape[-1]
    where = torch.where(occupied, torch.arange(n, device=occupied.device), n)
    first = where.amin(-1) if n else where.sum(-1)
    return (first % max(n, 1)).to(torch.int32)


def _past_last(occupied: Tensor) -> Tensor:
    """One past the last True along the last dimension, 0 if there is none; int32 [...]."""
    n = occupied.shape[-1]
    where = torch.where(occupied, torch.arange(1, n + 1, device=occupied.device), 0)
    return (where.amax(-1) if n else where.sum(-1)).to(torch.int32)
