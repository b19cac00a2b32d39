"""Sums of upsampled masks, and the focal loss of an upsampled map, in plain PyTorch, forward and backward.

The definitions that the compiled ops are tested against; arguments must already be checked. Accumulation is
in fp32, or in fp64 for fp64 inputs.
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


def mask_overlaps(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Sums of p g [B, N, G], p and p^2 [B, N], g and g^2 [B, G]; p is the sigmoid of the upsampled logits."""
    p = upsampled(logits).sigmoid().flatten(2)
    g = _wanted(masks, logits).flatten(2)
    return p @ g.transpose(1, 2), p.sum(-1), p.square().sum(-1), g.sum(-1), g.square().sum(-1)


def mask_pair_sums(logits: Tensor, masks: Tensor, row: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums of binary cross-entropy, p g, p^2 and g^2 of each pair logits[i], masks[row[i]], each [P]."""
    x = upsampled(logits).flatten(1)
    if not len(masks):
        return tuple(x.sum(1) for _ in range(4))  # type: ignore[return-value]
    g = _wanted(masks.index_select(0, row.clamp(0, len(masks) - 1)), logits).flatten(1)
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
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        sums = mask_pair_sums(leaf, masks, row)[:3]
    grads = (grad_cross_entropy, grad_overlap, grad_squares)
    return torch.autograd.grad(sums, leaf, grads)[0]


def upsampled_focal_loss(logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Focal loss (gamma = 2) of the upsampled logits, summed; labels outside 0..K-1 are background."""
    x = upsampled(logits)
    positive = labels[:, None] == torch.arange(x.shape[1], device=x.device).view(-1, 1, 1)
    z = torch.where(positive, -x, x)
    return (torch.where(positive, alpha, 1 - alpha) * z.sigmoid().square() * F.softplus(z)).sum()


def upsampled_focal_loss_backward(grad: Tensor, logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Gradient of the logits; `grad` [] is the gradient of the loss."""
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        loss = upsampled_focal_loss(leaf, labels, alpha)
    return torch.autograd.grad(loss, leaf, grad)[0]
