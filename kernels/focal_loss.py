"""Focal loss of upsampled class maps in Triton; programs as in `mask_sums`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, up_to
from .mask_sums import spans
from .upsampled import at_cell, cell, neighbours, probability_and_log, share


@triton.jit(do_not_specialize=["classes", "height", "width", "span"])
def focal_sums(
    logits, labels, sums, alpha, classes, height, width, span, BLOCK_K: tl.constexpr, BLOCK: tl.constexpr
):
    k_blocks = tl.cdiv(classes, BLOCK_K)
    splits = tl.cdiv(height * width, span)
    program = tl.program_id(0)
    split = program % splits
    k = program // splits % k_blocks * BLOCK_K + tl.arange(0, BLOCK_K)
    b = (program // splits // k_blocks).to(tl.int64)
    size = height * width
    maps = logits + (b * classes + k.to(tl.int64))[:, None] * size
    total = tl.zeros([BLOCK_K, BLOCK], tl.float32)
    start = split * span
    for first in range(start, tl.minimum(start + span, size), BLOCK):
        at = first + tl.arange(0, BLOCK)
        real = at < size
        y = at // width
        x = at % width
        inside = (k < classes)[:, None] & real[None, :]
        around = neighbours(maps, y[None, :], x[None, :], height, width, inside)
        for i in tl.static_range(1, 3):
            for j in tl.static_range(1, 3):
                place = b * 4 * size + at_cell(y, x, height, width, i, j)
                positive = tl.load(labels + place, mask=real, other=-1)[None, :] == k[:, None]
                z = cell(around, i, j)
                p, softplus = probability_and_log(tl.where(positive, -z, z))
                loss = tl.where(positive, alpha, 1.0 - alpha) * p * p * softplus
                total += tl.where(inside, loss, 0.0)
    tl.store(sums + program, tl.sum(tl.sum(total, axis=1), axis=0))


@triton.jit(do_not_specialize=["classes", "height", "width"])
def focal_backward(
    grad_loss, logits, labels, grad, alpha, classes, height, width, BLOCK_K: tl.constexpr, BLOCK: tl.constexpr
):
    k_blocks = tl.cdiv(classes, BLOCK_K)
    size = height * width
    blocks = tl.cdiv(size, BLOCK)
    program = tl.program_id(0)
    at = program % blocks * BLOCK + tl.arange(0, BLOCK)
    k = program // blocks % k_blocks * BLOCK_K + tl.arange(0, BLOCK_K)
    b = (program // blocks // k_blocks).to(tl.int64)
    real = at < size
    y = at // width
    x = at % width
    inside = (k < classes)[:, None] & real[None, :]
    rows = (b * classes + k.to(tl.int64))[:, None] * size
    around = neighbours(logits + rows, y[None, :], x[None, :], height, width, inside)
    total = tl.zeros([BLOCK_K, BLOCK], tl.float32)
    for i in tl.static_range(4):
        for j in tl.static_range(4):
            place = b * 4 * size + at_cell(y, x, height, width, i, j)
            positive = tl.load(labels + place, mask=real, other=-1)[None, :] == k[:, None]
            z = cell(around, i, j)
            p, softplus = probability_and_log(tl.where(positive, -z, z))
            slope = tl.where(positive, -alpha, 1.0 - alpha) * p * p * (2.0 * (1.0 - p) * softplus + p)
            total += (share(y, height, i) * share(x, width, j))[None, :] * slope
    total *= tl.load(grad_loss).to(tl.float32)
    tl.store(grad + rows + at[None, :], total.to(grad.dtype.element_ty), mask=inside)


def _arguments(logits: Tensor, labels: Tensor, alpha: float, block: int) -> dict:
    _, classes, height, width = logits.shape
    return {
        "logits": logits,
        "labels": labels,
        "alpha": alpha,
        "classes": classes,
        "height": height,
        "width": width,
        "BLOCK_K": up_to(8, classes),
        "BLOCK": up_to(block, height * width),
    }


def plan_forward(logits: Tensor, labels: Tensor, alpha: float) -> tuple[Launch, Tensor]:
    """Plan the launch that fills the partial sums, one per program."""
    arguments = _arguments(logits, labels, alpha, 128)
    batch, classes, height, width = logits.shape
    programs = batch * triton.cdiv(classes, arguments["BLOCK_K"])
    span, splits = spans(height * width, arguments["BLOCK"], programs)
    parts = torch.empty(splits * programs, dtype=torch.float32, device=logits.device)
    return Launch(focal_sums, splits * programs, {**arguments, "sums": parts, "span": span}), parts


def plan_backward(grad_loss: Tensor, logits: Tensor, labels: Tensor, alpha: float, grad: Tensor) -> Launch:
    """Plan the launch that fills `grad`, contiguous."""
    arguments = _arguments(logits, labels, alpha, 64)
    batch, classes, height, width = logits.shape
    programs = batch * triton.cdiv(classes, arguments["BLOCK_K"])
    programs *= triton.cdiv(height * width, arguments["BLOCK"])
    return Launch(focal_backward, programs, {**arguments, "grad_loss": grad_loss, "grad": grad})


def upsampled_focal_loss(logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Sigmoid focal loss (gamma = 2) of the upsampled logits, summed, fp32 [].

    Args:
        logits: class logits, fp32, fp16 or bf16 [B, K, h, w].
        labels: class of each cell, int [B, 2 h, 2 w]; not in 0..K-1 for background.
        alpha: weight of the labels; 1 - alpha elsewhere.
    """
    launch, parts = plan_forward(logits.contiguous(), labels.contiguous(), alpha)
    launch.run(logits.device)
    return parts.sum()


def upsampled_focal_loss_backward(grad: Tensor, logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Gradient of the logits, contiguous; `grad` [] is the gradient of the loss."""
    logits = logits.contiguous()
    result = torch.empty_like(logits)
    plan_backward(grad, logits, labels.contiguous(), alpha, result).run(logits.device)
    return result
