"""Backward passes in plain PyTorch, for GPUs without a kernel for them.

The tests compare them with autograd through `sp_fast.ops.reference`. Sums are in a fixed order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sp_fast.ops.reference import COSINE_EPS, accumulate, box_cells, first_rows


def roi_average_pool_backward(
    grad: Tensor,
    boxes: Tensor,
    count: Tensor | None,
    height: int,
    width: int,
    channels_last: bool = False,
) -> Tensor:
    """Gradient of the features [B, C, H, W], contiguous or channels-last, from `grad` [B, L, C]."""
    batch, number, channels = grad.shape
    x0, y0, x1, y1 = box_cells(boxes, height, width)
    rows = torch.arange(height, device=grad.device)[:, None]
    columns = torch.arange(width, device=grad.device)
    real = first_rows(count, batch, number, grad.device)
    share = accumulate(grad) / ((x1 - x0) * (y1 - y0))[..., None]
    total = share.new_zeros(batch, channels, height, width)
    for box in range(number):
        left, top, right, bottom = (side[:, box, None, None] for side in (x0, y0, x1, y1))
        inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)  # [B, H, W]
        inside = inside & real[:, box, None, None]
        total = total + torch.where(inside[:, None], share[:, box, :, None, None], 0)
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
    stages, _, number, channels = kernels.shape
    if number == 0 or index.numel() == 0:
        return torch.zeros_like(kernels), torch.zeros_like(targets)
    index = index.long().clamp(-1, number - 1)
    matched = index >= 0  # [S, B, L]
    where = index.clamp(min=0)[..., None].expand(-1, -1, -1, channels)
    kernel = accumulate(torch.where(matched[..., None], kernels.gather(2, where), 0))
    target = accumulate(torch.where(matched[..., None], targets.expand(stages, -1, -1, -1), 0))
    weight = -grad * matched
    if mean:
        weight = weight / matched.sum((1, 2), keepdim=True).clamp(min=1)
    grad_kernels = torch.zeros_like(kernels, dtype=kernel.dtype)
    pairs = _cosine_gradient(kernel, target, weight)
    for proposal in range(index.shape[2]):
        at = where[:, :, proposal, None]
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
