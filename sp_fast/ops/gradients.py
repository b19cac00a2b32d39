"""Backward passes in plain PyTorch, for GPUs without a kernel for them.

The tests compare them with autograd through `sp_fast.ops.reference`. Sums are in a fixed order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sp_fast.ops.reference import COSINE_EPS, accumulate, cells_in_boxes, matched_pairs


def roi_average_pool_backward(
    grad: Tensor, boxes: Tensor, count: Tensor | None, height: int, width: int, channels_last: bool = False
) -> Tensor:
    """Gradient of the features [B, C, H, W], contiguous or channels-last, from `grad` [B, L, C]."""
    share = accumulate(grad)
    total = share.new_zeros(grad.shape[0], grad.shape[2], height, width)
    for box, inside in enumerate(cells_in_boxes(boxes, count, height, width).unbind(1)):
        area = inside.sum((1, 2)).clamp(min=1)[:, None]
        total += torch.where(inside[:, None], (share[:, box] / area)[..., None, None], 0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return total.to(grad.dtype, memory_format=layout)


def match_prompts_backward(
    grad: Tensor, index: Tensor, prompts: int, sum_kernels: bool, sum_prompts: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of shared kernels [N, C] and of prompts [B, L, C]; one that is not wanted is empty."""
    batch, _, channels = grad.shape
    grad_kernels = grad.sum(0) if sum_kernels else grad.new_empty(0)
    if not sum_prompts:
        return grad_kernels, grad.new_empty(0)
    grad_prompts = grad.new_empty(batch, prompts, channels)
    for prompt in range(prompts):
        mine = torch.where((index == prompt)[..., None], accumulate(grad), 0)
        grad_prompts[:, prompt] = mine.sum(1)
    return grad_kernels, grad_prompts


def kernel_supervision_loss_backward(
    grad: Tensor, kernels: Tensor, targets: Tensor, index: Tensor, mean: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of kernels and targets; `grad` [] is the gradient of the loss."""
    if kernels.shape[2] == 0 or index.numel() == 0:
        return torch.zeros_like(kernels), torch.zeros_like(targets)
    kernel, target, matched, row = matched_pairs(kernels, targets, index)
    weight = -grad * matched
    if mean:
        weight = weight / matched.sum((1, 2), keepdim=True).clamp(min=1)
    grad_kernels = torch.zeros_like(kernels, dtype=kernel.dtype)
    pairs = _cosine_gradient(kernel, target, weight)
    for proposal in range(index.shape[2]):
        at = row[:, :, proposal, None]
        # Added, not set: several proposals may match the same kernel.
        grad_kernels.scatter_(2, at, grad_kernels.gather(2, at) + pairs[:, :, proposal, None])
    grad_targets = _cosine_gradient(target, kernel, weight).sum(0)
    return grad_kernels.to(kernels.dtype), grad_targets.to(targets.dtype)


def _cosine_gradient(x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Gradient of weight * cos(x, y) with respect to x; a norm below eps is replaced by the constant eps."""
    x_norm, y_norm = (v.norm(dim=-1, keepdim=True) for v in (x, y))
    x_size, y_size = (norm.clamp(min=COSINE_EPS) for norm in (x_norm, y_norm))
    cosine = ((x / x_size) * (y / y_size)).sum(-1, keepdim=True)
    along = torch.where(x_norm < COSINE_EPS, 0, cosine / x_size)
    return weight[..., None] * (y / y_size - along * x) / x_size
