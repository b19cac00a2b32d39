"""Kernel supervision loss (Eq. 9) in Triton.

Forward: each program handles a few proposals of one stage and image and writes the sum and number of their
losses; a second, tiny kernel adds these up in a fixed order. Letting the last program to finish add up would
need a zeroed counter (a memset, so no fewer nodes in a CUDA graph), a fence and an atomic.

Backward: a tiny kernel makes the weight of a pair from the number of pairs of its stage; a second one writes
every element of both gradients once. A program either handles a few kernels of one stage and image and sums
over their proposals in ascending order, or one proposal and sums over stages.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import COSINE_EPS, TILE, Launch, inverse, strides, up_to


@triton.jit
def compare(x, y):
    """Inner products of the rows of x and y, and the norms of both."""
    return (
        tl.sum(x * y, axis=1),
        tl.math.sqrt_rn(tl.sum(x * x, axis=1)),
        tl.math.sqrt_rn(tl.sum(y * y, axis=1)),
    )


@triton.jit
def cosine_factors(x, y, weight):
    """Factors a, b, c of the gradients of weight * cos(x, y): a * y - b * x for x, a * x - c * y for y."""
    product, x_norm, y_norm = compare(x, y)
    a = weight * inverse(x_norm) * inverse(y_norm)
    # A norm below eps is replaced by the constant eps.
    b = tl.where(x_norm < COSINE_EPS, 0.0, a * product * inverse(x_norm) * inverse(x_norm))
    c = tl.where(y_norm < COSINE_EPS, 0.0, a * product * inverse(y_norm) * inverse(y_norm))
    return a, b, c


@triton.jit
def matched_number(row, batch, proposals, stride_b, stride_l, BLOCK: tl.constexpr):
    """Number of matched pairs in a stage, fp32; `row` points to its indices."""
    number = 0.0
    for start in range(0, batch * proposals, BLOCK):
        at = start + tl.arange(0, BLOCK)
        pairs = (at // proposals).to(tl.int64) * stride_b + (at % proposals).to(tl.int64) * stride_l
        matched = tl.load(row + pairs, mask=at < batch * proposals, other=-1)
        number += tl.sum((matched >= 0).to(tl.float32), axis=0)
    return number


@triton.jit(do_not_specialize=["batch", "number", "proposals"])
def partial_losses(
    kernels,
    targets,
    index,
    partial,
    batch,
    number,
    proposals,
    kernel_stride_s,
    kernel_stride_b,
    kernel_stride_n,
    kernel_stride_c,
    target_stride_b,
    target_stride_l,
    target_stride_c,
    index_stride_s,
    index_stride_b,
    index_stride_l,
    CHANNELS: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    blocks = tl.cdiv(proposals, BLOCK_L)
    program = tl.program_id(0)
    s = (program // blocks // batch).to(tl.int64)
    b = (program // blocks % batch).to(tl.int64)
    l = (program % blocks).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)  # noqa: E741
    c = tl.arange(0, BLOCK_C).to(tl.int64)
    at = index + s * index_stride_s + b * index_stride_b + l * index_stride_l
    n = tl.minimum(tl.load(at, mask=l < proposals, other=-1).to(tl.int64), number - 1)
    matched = n >= 0
    inside = matched[:, None] & (c < CHANNELS)[None, :]
    kernel_rows = kernels + s * kernel_stride_s + b * kernel_stride_b + n[:, None] * kernel_stride_n
    target_rows = targets + b * target_stride_b + l[:, None] * target_stride_l
    kernel = tl.load(kernel_rows + c[None, :] * kernel_stride_c, mask=inside, other=0.0).to(tl.float32)
    target = tl.load(target_rows + c[None, :] * target_stride_c, mask=inside, other=0.0).to(tl.float32)
    product, kernel_norm, target_norm = compare(kernel, target)
    loss = tl.where(matched, 1 - product * (inverse(kernel_norm) * inverse(target_norm)), 0.0)
    tl.store(partial + program, tl.sum(loss, axis=0))
    tl.store(partial + tl.num_programs(0) + program, tl.sum(matched.to(tl.float32), axis=0))


@triton.jit(do_not_specialize=["stages", "parts"])
def total_loss(partial, loss, stages, parts, MEAN: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK: tl.constexpr):
    total = 0.0
    for first in range(0, stages, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)
        losses = tl.zeros([BLOCK_S], tl.float32)
        pairs = tl.zeros([BLOCK_S], tl.float32)
        for start in range(0, parts, BLOCK):
            part = start + tl.arange(0, BLOCK)
            inside = (s < stages)[:, None] & (part < parts)[None, :]
            at = partial + s[:, None] * parts + part[None, :]
            losses += tl.sum(tl.load(at, mask=inside, other=0.0), axis=1)
            pairs += tl.sum(tl.load(at + stages * parts, mask=inside, other=0.0), axis=1)
        if MEAN:
            losses = tl.math.div_rn(losses, tl.maximum(pairs, 1.0))
        total += tl.sum(losses, axis=0)
    tl.store(loss, total)


@triton.jit(do_not_specialize=["batch", "proposals"])
def pair_weights(
    grad,
    index,
    weights,
    batch,
    proposals,
    index_stride_s,
    index_stride_b,
    index_stride_l,
    MEAN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    s = tl.program_id(0).to(tl.int64)
    weight = -tl.load(grad).to(tl.float32)
    if MEAN:
        number = matched_number(
            index + s * index_stride_s, batch, proposals, index_stride_b, index_stride_l, BLOCK
        )
        weight = tl.math.div_rn(weight, tl.maximum(number, 1.0))
    tl.store(weights + s, weight)


@triton.jit
def kernel_gradients(
    kernel_at,
    target_at,
    index_at,
    weight,
    n,
    number,
    proposals,
    target_stride,
    index_stride,
    real,
    BLOCK: tl.constexpr,
):
    """Gradients [n, C] of the kernels n of one stage and image, summed over proposals in ascending order."""
    total = tl.zeros([n.shape[0], real.shape[1]], tl.float32)
    for start in range(0, proposals, BLOCK):
        l = start + tl.arange(0, BLOCK)  # noqa: E741
        of_l = tl.load(index_at + l.to(tl.int64) * index_stride, mask=l < proposals, other=-1)
        pair = tl.minimum(of_l, number - 1)[None, :] == n[:, None]
        match = tl.min(tl.where(pair, l[None, :], proposals), axis=1)
        while tl.min(match, axis=0) < proposals:
            inside = (match < proposals)[:, None] & real
            target_rows = target_at + match.to(tl.int64)[:, None] * target_stride
            target = tl.load(target_rows, mask=inside, other=0.0).to(tl.float32)
            kernel = tl.load(kernel_at, mask=inside, other=0.0).to(tl.float32)
            by_target, by_kernel, _ = cosine_factors(kernel, target, weight)
            total += by_target[:, None] * target - by_kernel[:, None] * kernel
            match = tl.min(tl.where(pair & (l[None, :] > match[:, None]), l[None, :], proposals), axis=1)
    return total


@triton.jit
def target_gradient(kernel_at, target_at, index_at, weight, number, kernel_stride, inside, real):
    """Sum over some stages of the gradient of one target, [C]."""
    n = tl.minimum(tl.load(index_at, mask=inside, other=-1).to(tl.int64), number - 1)
    inside = (n >= 0)[:, None] & real
    kernel = tl.load(kernel_at + n[:, None] * kernel_stride, mask=inside, other=0.0).to(tl.float32)
    target = tl.load(tl.broadcast_to(target_at, kernel.shape), mask=inside, other=0.0).to(tl.float32)
    by_kernel, _, by_target = cosine_factors(kernel, target, weight)
    return tl.sum(by_kernel[:, None] * kernel - by_target[:, None] * target, axis=0)


@triton.jit(do_not_specialize=["stages", "batch", "number", "proposals", "kernel_programs"])
def loss_backward(
    weights,
    kernels,
    targets,
    index,
    grad_kernels,
    grad_targets,
    stages,
    batch,
    number,
    proposals,
    kernel_programs,
    kernel_stride_s,
    kernel_stride_b,
    kernel_stride_n,
    kernel_stride_c,
    target_stride_b,
    target_stride_l,
    target_stride_c,
    index_stride_s,
    index_stride_b,
    index_stride_l,
    CHANNELS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    program = tl.program_id(0)
    c = tl.arange(0, BLOCK_C).to(tl.int64)
    real = (c < CHANNELS)[None, :]
    kernel_c = kernels + c[None, :] * kernel_stride_c
    target_c = targets + c[None, :] * target_stride_c
    if program < kernel_programs:
        blocks = tl.cdiv(number, BLOCK_N)
        b = (program // blocks % batch).to(tl.int64)
        s = (program // blocks // batch + tl.arange(0, 1)).to(tl.int64)
        n = (program % blocks).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
        kernel_at = (
            kernel_c + s[:, None] * kernel_stride_s + b * kernel_stride_b + n[:, None] * kernel_stride_n
        )
        gradient = kernel_gradients(
            kernel_at,
            target_c + b * target_stride_b,
            index + s * index_stride_s + b * index_stride_b,
            tl.load(weights + s),
            n,
            number,
            proposals,
            target_stride_l,
            index_stride_l,
            real,
            BLOCK_L,
        )
        to = grad_kernels + ((s[:, None] * batch + b) * number + n[:, None]) * CHANNELS + c[None, :]
        tl.store(to, gradient.to(grad_kernels.dtype.element_ty), mask=(n < number)[:, None] & real)
    else:
        row = program - kernel_programs
        image = (row // proposals).to(tl.int64)
        proposal = (row % proposals).to(tl.int64)
        total = tl.zeros([BLOCK_C], tl.float32)
        for start in range(0, stages, BLOCK_S):
            stage = (start + tl.arange(0, BLOCK_S)).to(tl.int64)
            total += target_gradient(
                kernel_c + stage[:, None] * kernel_stride_s + image * kernel_stride_b,
                target_c + image * target_stride_b + proposal * target_stride_l,
                index + stage * index_stride_s + image * index_stride_b + proposal * index_stride_l,
                tl.load(weights + stage, mask=stage < stages, other=0.0),
                number,
                kernel_stride_n,
                stage < stages,
                real,
            )
        to_target = grad_targets + row.to(tl.int64) * CHANNELS + c
        tl.store(to_target, total.to(grad_targets.dtype.element_ty), mask=c < CHANNELS)


def plan_forward(
    kernels: Tensor, targets: Tensor, index: Tensor, mean: bool, loss: Tensor
) -> tuple[Launch, Launch]:
    """Plan the two launches that fill `loss`, fp32 []."""
    stages, batch, number, channels = kernels.shape
    proposals = targets.shape[1]
    block_c = triton.next_power_of_2(channels)
    block_l = max(1, min(4, TILE // block_c))
    parts = batch * triton.cdiv(proposals, block_l)
    # partial[0]: sums of losses; partial[1]: numbers of pairs.
    partial = torch.empty((2, stages, parts), dtype=torch.float32, device=loss.device)
    first = {
        "kernels": kernels,
        "targets": targets,
        "index": index,
        "partial": partial,
        "batch": batch,
        "number": number,
        "proposals": proposals,
        **strides(kernel=(kernels, "sbnc"), target=(targets, "blc"), index=(index, "sbl")),
        "CHANNELS": channels,
        "BLOCK_L": block_l,
        "BLOCK_C": block_c,
    }
    second = {
        "partial": partial,
        "loss": loss,
        "stages": stages,
        "parts": parts,
        "MEAN": mean,
        "BLOCK_S": up_to(8, stages),
        "BLOCK": up_to(256, parts),
    }
    return Launch(partial_losses, stages * parts, first), Launch(total_loss, 1, second)


def plan_backward(
    grad: Tensor,
    kernels: Tensor,
    targets: Tensor,
    index: Tensor,
    mean: bool,
    grad_kernels: Tensor,
    grad_targets: Tensor,
) -> tuple[Launch, Launch]:
    """Plan the two launches that fill the gradients, both contiguous."""
    stages, batch, number, channels = kernels.shape
    proposals = targets.shape[1]
    block_c = triton.next_power_of_2(channels)
    block_n = max(1, min(8, TILE // block_c))
    kernel_programs = stages * batch * triton.cdiv(number, block_n)
    weights = torch.empty(stages, dtype=torch.float32, device=kernels.device)
    first = {
        "grad": grad,
        "index": index,
        "weights": weights,
        "batch": batch,
        "proposals": proposals,
        **strides(index=(index, "sbl")),
        "MEAN": mean,
        "BLOCK": up_to(1024, batch * proposals),
    }
    second = {
        "weights": weights,
        "kernels": kernels,
        "targets": targets,
        "index": index,
        "grad_kernels": grad_kernels,
        "grad_targets": grad_targets,
        "stages": stages,
        "batch": batch,
        "number": number,
        "proposals": proposals,
        "kernel_programs": kernel_programs,
        **strides(kernel=(kernels, "sbnc"), target=(targets, "blc"), index=(index, "sbl")),
        "CHANNELS": channels,
        "BLOCK_S": up_to(max(1, min(8, TILE // block_c)), stages),
        "BLOCK_N": block_n,
        "BLOCK_L": up_to(64, proposals),
        "BLOCK_C": block_c,
    }
    programs = kernel_programs + batch * proposals
    return Launch(pair_weights, stages, first), Launch(loss_backward, programs, second)


def kernel_supervision_loss(kernels: Tensor, targets: Tensor, index: Tensor, mean: bool) -> Tensor:
    """Sum or average one minus the cosine of each target and its matched kernel (Eq. 9), fp32 [].

    Args:
        kernels: kernels after each stage, fp32, fp16 or bf16 [S, B, N, C].
        targets: target of each proposal [B, L, C], same dtype.
        index: kernel matched with each proposal, int [S, B, L], clamped to [-1, N - 1].
        mean: average over the matched pairs of each stage, then sum over stages; else sum over all pairs.
    """
    if kernels.numel() == 0 or index.numel() == 0:
        return torch.zeros((), dtype=torch.float32, device=kernels.device)
    loss = torch.empty((), dtype=torch.float32, device=kernels.device)
    for launch in plan_forward(kernels, targets, index, mean, loss):
        launch.run(kernels.device)
    return loss


def kernel_supervision_loss_backward(
    grad: Tensor, kernels: Tensor, targets: Tensor, index: Tensor, mean: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of kernels and targets, contiguous; `grad` [] is the gradient of the loss."""
    make = torch.zeros if kernels.numel() == 0 or index.numel() == 0 else torch.empty
    grad_kernels = make(kernels.shape, dtype=kernels.dtype, device=kernels.device)
    grad_targets = make(targets.shape, dtype=targets.dtype, device=targets.device)
    if kernels.numel() and index.numel():
        for launch in plan_backward(grad, kernels, targets, index, mean, grad_kernels, grad_targets):
            launch.run(kernels.device)
    return grad_kernels, grad_targets
