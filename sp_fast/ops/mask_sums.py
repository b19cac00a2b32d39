"""Sums of upsampled masks and targets, from which matching costs and mask losses are computed."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sp_fast.ops import mask_sums_reference as reference
from sp_fast.ops.checks import FLOATS_AND_DOUBLE, INTS, check_map, check_tensor, check_values
from sp_fast.ops.extension import register
from sp_fast.ops.triton_kernels import triton_for

MASKS = (*FLOATS_AND_DOUBLE, torch.uint8)


class MaskOverlaps(NamedTuple):
    """Sums over cells of p g [B, N, G], p and p^2 [B, N], g and g^2 [B, G]; fp32, or fp64 for fp64 logits."""

    overlap: Tensor
    area: Tensor
    squares: Tensor
    target_area: Tensor
    target_squares: Tensor


class MaskPairSums(NamedTuple):
    """Sums over the cells of the cross-entropy of p and g, of p g, p^2 and g^2, each [P]; dtype as above."""

    cross_entropy: Tensor
    overlap: Tensor
    squares: Tensor
    target_squares: Tensor


def mask_overlaps(logits: Tensor, masks: Tensor) -> MaskOverlaps:
    """Sums of every mask with every target of its image, for p = sigmoid(logits upsampled bilinearly by 2).

    No upsampled mask is kept. Not differentiable. A NaN of p where g is 0 may or may not reach the overlap.

    Args:
        logits: mask logits [B, N, h, w], fp32, fp16, bf16 or fp64.
        masks: targets g [B, G, 2 h, 2 w]: any of these dtypes, or uint8, which counts quarters (4 is 1).

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong rank, shape or device.
    """
    check_maps(logits, masks, ("B", "N", "h", "w"))
    return MaskOverlaps(*_overlaps(logits.detach(), masks))


def mask_pair_sums(logits: Tensor, masks: Tensor, row: Tensor) -> MaskPairSums:
    """Sums of each mask logits[i] and its target g = masks[row[i]], for p as in `mask_overlaps`.

    No upsampled mask is kept. The first three sums are differentiable in the logits.

    Args:
        logits: mask logits [P, h, w], fp32, fp16, bf16 or fp64.
        masks: targets [R, 2 h, 2 w], dtypes as in `mask_overlaps`.
        row: target of each mask, int32 or int64 [P].

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong rank, shape, device or value.
    """
    check_pairs(logits, masks, row)
    return MaskPairSums(*_pairs(logits, masks, row))


def check_maps(logits: Tensor, masks: Tensor, shape: tuple[str, ...]) -> None:
    """Check types, shapes and devices of logits and targets (TypeError, ValueError)."""
    check_tensor("logits", logits, shape, FLOATS_AND_DOUBLE)
    check_map("logits", logits)
    *_, height, width = logits.shape
    first = ("R",) if logits.dim() == 3 else (logits.shape[0], "G")
    check_tensor("masks", masks, (*first, 2 * height, 2 * width), MASKS, like=logits)


def check_pairs(logits: Tensor, masks: Tensor, row: Tensor) -> None:
    """Check types, shapes and devices of pairs (TypeError, ValueError)."""
    check_maps(logits, masks, ("P", "h", "w"))
    check_tensor("row", row, (logits.shape[0],), INTS, like=logits)
    if len(row) and not len(masks):
        raise ValueError(f"masks: expected at least one target for {len(row)} masks, got none")


def _sums(logits: Tensor, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    return tuple(logits.new_empty(shape, dtype=dtype) for shape in shapes)


def _fake_overlaps(logits: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
    (batch, number), targets = logits.shape[:2], masks.shape[1]
    return _sums(
        logits, (batch, number, targets), (batch, number), (batch, number), (batch, targets), (batch, targets)
    )


def _overlaps_on_gpu(logits: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
    check_maps(logits, masks, ("B", "N", "h", "w"))
    return (triton_for(logits) or reference).mask_overlaps(logits, masks)


def _fake_pairs(logits: Tensor, masks: Tensor, row: Tensor) -> tuple[Tensor, ...]:
    return _sums(logits, *4 * [logits.shape[:1]])


def _checked_pairs(logits: Tensor, masks: Tensor, row: Tensor) -> tuple[Tensor, ...]:
    check_values("row", row, 0, masks.shape[0] - 1)
    return reference.mask_pair_sums(logits, masks, row)


def _pairs_on_gpu(logits: Tensor, masks: Tensor, row: Tensor) -> tuple[Tensor, ...]:
    check_pairs(logits, masks, row)
    return (triton_for(logits) or reference).mask_pair_sums(logits, masks, row)


def _fake_pairs_backward(
    grad_cross_entropy: Tensor,
    grad_overlap: Tensor,
    grad_squares: Tensor,
    logits: Tensor,
    masks: Tensor,
    row: Tensor,
) -> Tensor:
    return logits.new_empty(logits.shape)


def _pairs_backward_on_gpu(
    grad_cross_entropy: Tensor,
    grad_overlap: Tensor,
    grad_squares: Tensor,
    logits: Tensor,
    masks: Tensor,
    row: Tensor,
) -> Tensor:
    check_pairs(logits, masks, row)
    grads = {
        "grad_cross_entropy": grad_cross_entropy,
        "grad_overlap": grad_overlap,
        "grad_squares": grad_squares,
    }
    for name, grad in grads.items():
        check_tensor(name, grad, (logits.shape[0],), FLOATS_AND_DOUBLE, like=logits)
    module = triton_for(logits) or reference
    return module.mask_pair_sums_backward(grad_cross_entropy, grad_overlap, grad_squares, logits, masks, row)


_overlaps = register("mask_overlaps", _fake_overlaps, reference.mask_overlaps, _overlaps_on_gpu)
_pairs = register("mask_pair_sums", _fake_pairs, _checked_pairs, _pairs_on_gpu)
register(
    "mask_pair_sums_backward",
    _fake_pairs_backward,
    reference.mask_pair_sums_backward,
    _pairs_backward_on_gpu,
)
