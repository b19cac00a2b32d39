"""Sums of upsampled masks and targets in Triton.

Every program reads a range of cells of the small maps; each stands for 2 x 2 upsampled cells. Programs
write partial sums, which PyTorch adds up in a fixed order. Backward: each program gathers the gradient of
some cells from the 4 x 4 upsampled cells that depend on them, so there are no atomic additions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, up_to
from .upsampled import at_cell, cell, neighbours, probability_and_log, share


@triton.jit
def target(masks, at, inside):
    """Load targets in fp32; uint8 counts quarters."""
    wanted = tl.load(masks + at, mask=inside, other=0).to(tl.float32)
    if masks.dtype.element_ty == tl.uint8:
        wanted *= 0.25
    return wanted


@triton.jit(do_not_specialize=["batch", "number", "targets", "height", "width", "span"])
def overlap_sums(
    logits,
    masks,
    overlap,
    area,
    squares,
    target_area,
    target_squares,
    batch,
    number,
    targets,
    height,
    width,
    span,
    BLOCK_N: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK: tl.constexpr,
):
    n_blocks = tl.cdiv(number, BLOCK_N)
    g_blocks = tl.maximum(tl.cdiv(targets, BLOCK_G), 1)
    program = tl.program_id(0)
    g_block = program % g_blocks
    n_block = program // g_blocks % n_blocks
    b = (program // g_blocks // n_blocks % batch).to(tl.int64)
    split = (program // g_blocks // n_blocks // batch).to(tl.int64)
    n = n_block * BLOCK_N + tl.arange(0, BLOCK_N)
    g = g_block * BLOCK_G + tl.arange(0, BLOCK_G)
    size = height * width
    maps = logits + (b * number + n.to(tl.int64))[:, None] * size
    wanted = masks + (b * targets + g.to(tl.int64))[:, None] * (4 * size)
    overlaps = tl.zeros([BLOCK_N, BLOCK_G], tl.float32)
    areas = tl.zeros([BLOCK_N], tl.float32)
    square_sums = tl.zeros([BLOCK_N], tl.float32)
    g_areas = tl.zeros([BLOCK_G], tl.float32)
    g_squares = tl.zeros([BLOCK_G], tl.float32)
    start = split.to(tl.int32) * span
    for first in range(start, tl.minimum(start + span, size), BLOCK):
        at = first + tl.arange(0, BLOCK)
        real = at < size
        y = at // width
        x = at % width
        inside = (n < number)[:, None] & real[None, :]
        around = neighbours(maps, y[None, :], x[None, :], height, width, inside)
        for i in tl.static_range(1, 3):
            for j in tl.static_range(1, 3):
                p, _ = probability_and_log(cell(around, i, j))
                p = tl.where(inside, p, 0.0)
                place = at_cell(y, x, height, width, i, j)
                g_real = (g < targets)[:, None] & real[None, :]
                t = target(wanted, place[None, :], g_real)
                overlaps += tl.dot(p, tl.trans(t), input_precision="tf32x3")
                areas += tl.sum(p, axis=1)
                square_sums += tl.sum(p * p, axis=1)
                g_areas += tl.sum(t, axis=1)
                g_squares += tl.sum(t * t, axis=1)
    image = split * batch + b
    rows = image * number + n
    pairs = rows[:, None] * targets + g[None, :]
    tl.store(overlap + pairs, overlaps, mask=(n < number)[:, None] & (g < targets)[None, :])
    if g_block == 0:
        tl.store(area + rows, areas, mask=n < number)
        tl.store(squares + rows, square_sums, mask=n < number)
    if n_block == 0:
        columns = image * targets + g
        tl.store(target_area + columns, g_areas, mask=g < targets)
        tl.store(target_squares + columns, g_squares, mask=g < targets)


@triton.jit(do_not_specialize=["pairs", "rows", "height", "width", "span"])
def pair_sums(logits, masks, row, sums, pairs, rows, height, width, span, BLOCK: tl.constexpr):
    program = tl.program_id(0)
    pair = (program % pairs).to(tl.int64)
    split = program // pairs
    size = height * width
    of_pair = tl.minimum(tl.maximum(tl.load(row + pair).to(tl.int64), 0), rows - 1)
    maps = logits + pair * size
    wanted = masks + of_pair * (4 * size)
    entropy = tl.zeros([BLOCK], tl.float32)
    overlap = tl.zeros([BLOCK], tl.float32)
    squares = tl.zeros([BLOCK], tl.float32)
    target_squares = tl.zeros([BLOCK], tl.float32)
    start = split * span
    for first in range(start, tl.minimum(start + span, size), BLOCK):
        at = first + tl.arange(0, BLOCK)
        inside = at < size
        y = at // width
        x = at % width
        around = neighbours(maps, y, x, height, width, inside)
        for i in tl.static_range(1, 3):
            for j in tl.static_range(1, 3):
                z = cell(around, i, j)
                p, softplus = probability_and_log(z)
                t = target(wanted, at_cell(y, x, height, width, i, j), inside)
                entropy += tl.where(inside, softplus - z * t, 0.0)
                overlap += tl.where(inside, p * t, 0.0)
                squares += tl.where(inside, p * p, 0.0)
                target_squares += t * t
    to = sums + split.to(tl.int64) * 4 * pairs + pair
    tl.store(to, tl.sum(entropy, axis=0))
    tl.store(to + pairs, tl.sum(overlap, axis=0))
    tl.store(to + 2 * pairs, tl.sum(squares, axis=0))
    tl.store(to + 3 * pairs, tl.sum(target_squares, axis=0))


@triton.jit(do_not_specialize=["pairs", "rows", "height", "width"])
def pair_sums_backward(
    grad_cross_entropy,
    grad_overlap,
    grad_squares,
    logits,
    masks,
    row,
    grad,
    pairs,
    rows,
    height,
    width,
    BLOCK: tl.constexpr,
):
    program = tl.program_id(0)
    pair = (program % pairs).to(tl.int64)
    size = height * width
    of_pair = tl.minimum(tl.maximum(tl.load(row + pair).to(tl.int64), 0), rows - 1)
    wanted = masks + of_pair * (4 * size)
    of_entropy = tl.load(grad_cross_entropy + pair).to(tl.float32)
    of_overlap = tl.load(grad_overlap + pair).to(tl.float32)
    of_squares = tl.load(grad_squares + pair).to(tl.float32)
    at = program // pairs * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    y = at // width
    x = at % width
    around = neighbours(logits + pair * size, y, x, height, width, inside)
    total = tl.zeros([BLOCK], tl.float32)
    for i in tl.static_range(4):
        for j in tl.static_range(4):
            p, _ = probability_and_log(cell(around, i, j))
            t = target(wanted, at_cell(y, x, height, width, i, j), inside)
            slope = of_entropy * (p - t) + p * (1 - p) * (of_overlap * t + 2 * of_squares * p)
            total += share(y, height, i) * share(x, width, j) * slope
    tl.store(grad + pair * size + at, total.to(grad.dtype.element_ty), mask=inside)


def spans(size: int, block: int, others: int) -> tuple[int, int]:
    """Cells of each program's range and number of ranges, for about 2048 programs in all."""
    wanted = max(1, min(triton.cdiv(size, 4 * block), 2048 // max(others, 1)))
    span = triton.cdiv(triton.cdiv(size, wanted), block) * block
    return span, triton.cdiv(size, span)


def plan_overlaps(logits: Tensor, masks: Tensor) -> tuple[Launch, list[Tensor]]:
    """Plan the launch that fills the partial sums; a first dimension counts the ranges of cells."""
    batch, number, height, width = logits.shape
    targets = masks.shape[1]
    block_g = max(16, up_to(32, targets))
    programs = batch * triton.cdiv(number, 16) * max(1, triton.cdiv(targets, block_g))
    span, splits = spans(height * width, 16, programs)
    shapes = ((batch, number, targets), (batch, number), (batch, number), (batch, targets), (batch, targets))
    parts = [torch.empty((splits, *s), dtype=torch.float32, device=logits.device) for s in shapes]
    names = ("overlap", "area", "squares", "target_area", "target_squares")
    arguments = {
        "logits": logits,
        "masks": masks,
        **dict(zip(names, parts, strict=True)),
        "batch": batch,
        "number": number,
        "targets": targets,
        "height": height,
        "width": width,
        "span": span,
        "BLOCK_N": 16,
        "BLOCK_G": block_g,
        "BLOCK": 16,
    }
    return Launch(overlap_sums, splits * programs, arguments), parts


def plan_pairs(logits: Tensor, masks: Tensor, row: Tensor) -> tuple[Launch, Tensor]:
    """Plan the launch that fills the partial sums [ranges of cells, 4, P]."""
    pairs, height, width = logits.shape
    block = up_to(512, height * width)
    span, splits = spans(height * width, block, pairs)
    parts = torch.empty((splits, 4, pairs), dtype=torch.float32, device=logits.device)
    arguments = {
        "logits": logits,
        "masks": masks,
        "row": row,
        "sums": parts,
        "pairs": pairs,
        "rows": masks.shape[0],
        "height": height,
        "width": width,
        "span": span,
        "BLOCK": block,
    }
    return Launch(pair_sums, splits * pairs, arguments), parts


def plan_pairs_backward(
    grads: tuple[Tensor, Tensor, Tensor], logits: Tensor, masks: Tensor, row: Tensor, grad: Tensor
) -> Launch:
    """Plan the launch that fills `grad`, contiguous."""
    pairs, height, width = logits.shape
    block = up_to(256, height * width)
    names = ("grad_cross_entropy", "grad_overlap", "grad_squares")
    arguments = {
        **dict(zip(names, grads, strict=True)),
        "logits": logits,
        "masks": masks,
        "row": row,
        "grad": grad,
        "pairs": pairs,
        "rows": masks.shape[0],
        "height": height,
        "width": width,
        "BLOCK": block,
    }
    return Launch(pair_sums_backward, pairs * triton.cdiv(height * width, block), arguments)


def mask_overlaps(logits: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
    """Sums of p g [B, N, G], p and p^2 [B, N], g and g^2 [B, G], fp32; p: sigmoid of the upsampled logits.

    Args:
        logits: mask logits, fp32, fp16 or bf16 [B, N, h, w].
        masks: targets [B, G, 2 h, 2 w], fp32, fp16, bf16, or uint8 in quarters.
    """
    batch, number = logits.shape[:2]
    if number == 0:
        # Without a mask no program would read the targets.
        sums = mask_overlaps(logits.new_zeros(batch, 1, *logits.shape[2:]), masks)
        return sums[0][:, :0], sums[1][:, :0], sums[2][:, :0], *sums[3:]
    launch, parts = plan_overlaps(logits.contiguous(), masks.contiguous())
    launch.run(logits.device)
    return tuple(part.sum(0) for part in parts)


def mask_pair_sums(logits: Tensor, masks: Tensor, row: Tensor) -> tuple[Tensor, ...]:
    """Sums of binary cross-entropy, p g, p^2 and g^2 of each logits[i] and masks[row[i]], fp32 [P].

    Args:
        logits: mask logits, fp32, fp16 or bf16 [P, h, w].
        masks: targets [R, 2 h, 2 w], dtypes as in `mask_overlaps`.
        row: target of each mask, int [P], clamped to [0, R - 1].
    """
    launch, parts = plan_pairs(logits.contiguous(), masks.contiguous(), row.contiguous())
    launch.run(logits.device)
    return tuple(part.contiguous() for part in parts.sum(0))


def mask_pair_sums_backward(
    grad_cross_entropy: Tensor,
    grad_overlap: Tensor,
    grad_squares: Tensor,
    logits: Tensor,
    masks: Tensor,
    row: Tensor,
) -> Tensor:
    """Gradient of the logits, contiguous, from those of the first three sums, each [P]."""
    logits, masks, row = logits.contiguous(), masks.contiguous(), row.contiguous()
    first, second, third = (g.contiguous() for g in (grad_cross_entropy, grad_overlap, grad_squares))
    grad = torch.empty_like(logits)
    plan_pairs_backward((first, second, third), logits, masks, row, grad).run(logits.device)
    return grad
