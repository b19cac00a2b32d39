"""Sums of upsampled masks, and the focal loss of an upsampled map, in plain PyTorch, forward and backward.

The definitions that the compiled ops are tested against; arguments must already be checked. Accumulation is
in fp32, or in fp64 for fp64 inputs. The backward passes run below autograd, so they do not use it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sp_fast.ops.reference import accumulate


def upsampled(maps: Tensor) -> Tensor:
    """Upsample maps [..., h, w] bilinearly to [..., 2 h, 2 w], cell centres aligned."""
    # Interpolation accepts 0 maps only as batch size.
    stack = accumulate(maps).reshape(-1, 1, *maps.shape[-2:])
    big = F.interpolate(stack, scale_factor=2, mode="bilinear", align_corners=False)
    return big.view(*maps.shape[:-2], *big.shape[-2:])


def _wanted(masks: Tensor, like: Tensor) -> Tensor:
    """Targets in the dtype of accumulation; uint8 counts quarters."""
    wanted = masks.to(accumulate(like[:0]).dtype)
    return wanted / 4 if masks.dtype == torch.uint8 else wanted


def _wanted_rows(masks: Tensor, row: Tensor, like: Tensor) -> Tensor:
    return _wanted(masks.index_select(0, row.clamp(0, max(len(masks) - 1, 0))), like)


def _folded(grad: Tensor, like: Tensor) -> Tensor:
    """The gradient of the logits from that of `upsampled(logits)`: the adjoint of `upsampled`."""
    stack = grad.reshape(-1, 1, *grad.shape[-2:])
    size, small = list(grad.shape[-2:]), [len(stack), 1, *like.shape[-2:]]
    folded = torch.ops.aten.upsample_bilinear2d_backward(stack, size, small, False, 2.0, 2.0)
    return folded.view(like.shape).to(like.dtype)


def mask_overlaps(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sums of p g [B, N, G], p and p^2 [B, N], g and g^2 [B, G]; p is the sigmoid of the upsampled logits."""
    p = upsampled(logits).sigmoid().flatten(2)
    g = _wanted(masks, logits).flatten(2)
    with torch.autocast(p.device.type, enabled=False):
        overlap = p @ g.transpose(1, 2)
    return overlap, p.sum(-1), p.square().sum(-1), g.sum(-1), g.square().sum(-1)


def mask_pair_sums(logits: Tensor, masks: Tensor, row: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums of binary cross-entropy, p g, p^2 and g^2 of each pair logits[i], masks[row[i]], each [P]."""
    x = upsampled(logits).flatten(1)
    g = _wanted_rows(masks, row, logits).flatten(1)
    p = x.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(x, g, reduction="none").sum(1)
    return entropy, (p * g).sum(1), p.square().sum(1), g.square().sum(1)


def mask_pair_sums_backward(
    grad_cross_entropy: Tensor,
    grad_overlap: Tensor,
    grad_squares: Tensor,
    logits: Tensor,
    masks: Tensor,
    row: Tensor,
) -> Tensor:
    """Gradient of the logits from those of the first three sums."""
    p = upsampled(logits).sigmoid()
    g = _wanted_rows(masks, row, logits)
    of_entropy, of_overlap, of_squares = (
        grad[:, None, None].to(p.dtype) for grad in (grad_cross_entropy, grad_overlap, grad_squares)
    )
    slope = of_entropy * (p - g) + p * (1 - p) * (of_overlap * g + 2 * of_squares * p)
    return _folded(slope, logits)


def _signed(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Where a class is the label of the cell, and the upsampled logits, negated there."""
    x = upsampled(logits)
    positive = labels[:, None] == torch.arange(x.shape[1], device=x.device).view(-1, 1, 1)
    return positive, torch.where(positive, -x, x)


def upsampled_focal_loss(logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Focal loss (gamma = 2) of the upsampled logits, summed; labels outside 0..K-1 are background."""
    positive, z = _signed(logits, labels)
    # log(1 + exp(z)), which F.softplus rounds to z above 20
    loss = z.sigmoid().square() * -F.logsigmoid(-z)
    return torch.where(positive, alpha * loss, (1 - alpha) * loss).sum()


def upsampled_focal_loss_backward(grad: Tensor, logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Gradient of the logits; `grad` [] is the gradient of the loss."""
    positive, z = _signed(logits, labels)
    p = z.sigmoid()
    slope = grad.to(z.dtype) * p.square() * (p - 2 * (-z).sigmoid() * F.logsigmoid(-z))
    return _folded(torch.where(positive, -alpha * slope, (1 - alpha) * slope), logits)
