"""Prompt-kernel matching (Eq. 6-8) in Triton: one kernel forward, one backward.

Forward: each program compares a few kernels of one image with all prompts of that image, block by block.
Backward: each program sums the gradients of the kernels that chose one prompt of one image or, for shared
kernels, the gradients of one kernel over the images. There are no atomic additions.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import TILE, Launch, inverse, strides, up_to


@triton.jit
def prompt_block(prompts, l, number, segment, stride_l, stride_c, CHANNELS: tl.constexpr):  # noqa: E741
    """Load prompts l of an image in fp32, laid out as `segment`; zeros past the last."""
    at = prompts + l.to(tl.int64)[None, :, None] * stride_l + segment * stride_c
    return tl.load(at, mask=(segment < CHANNELS) & (l < number)[None, :, None], other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["number", "prompt_number"])
def match_prompts_forward(
    kernels,
    prompts,
    count,
    decorated,
    index,
    number,
    prompt_number,
    kernel_stride_b,
    kernel_stride_n,
    kernel_stride_c,
    prompt_stride_b,
    prompt_stride_l,
    prompt_stride_c,
    count_stride,
    CHANNELS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_L: tl.constexpr,
    SEGMENTS: tl.constexpr,
    SEGMENT: tl.constexpr,
):
    blocks = tl.cdiv(number, BLOCK_N)
    program = tl.program_id(0)
    b = (program // blocks).to(tl.int64)
    first_n = program % blocks * BLOCK_N
    n = first_n.to(tl.int64) + tl.arange(0, BLOCK_N)
    c = tl.arange(0, SEGMENTS * SEGMENT).to(tl.int64)
    inside = (n < number)[:, None] & (c < CHANNELS)[None, :]
    real = prompt_number
    if count is not None:
        real = tl.minimum(tl.load(count + b * count_stride), prompt_number)

    # Vectors as [segment, prompt, within the segment]: a segment is 64 bytes, so four lanes share a prompt
    # and a warp holds eight. Sums over channels then need only two shuffles.
    segment = tl.arange(0, SEGMENTS)[:, None, None] * SEGMENT + tl.arange(0, SEGMENT)[None, None, :]
    segment = segment.to(tl.int64)
    prompt_image = prompts + b * prompt_stride_b
    l = tl.arange(0, BLOCK_L)  # noqa: E741
    # Load the first block before anything waits, and each next block as soon as the last is used up.
    prompt = prompt_block(prompt_image, l, prompt_number, segment, prompt_stride_l, prompt_stride_c, CHANNELS)
    image = kernels + b * kernel_stride_b
    kernel_at = image + n[:, None] * kernel_stride_n + c[None, :] * kernel_stride_c
    kernel = tl.load(kernel_at, mask=inside, other=0.0).to(tl.float32)
    by_norm = inverse(tl.math.sqrt_rn(tl.sum(kernel * kernel, axis=1)))
    best = tl.full([BLOCK_N], float("-inf"), tl.float32)
    chosen = tl.full([BLOCK_N], -1, tl.int32)
    for _ in range(0, prompt_number, BLOCK_L):
        square = tl.sum(tl.sum(prompt * prompt, axis=0), axis=1)
        unit_prompt = prompt * inverse(tl.math.sqrt_rn(square))[None, :, None]
        cosine = tl.zeros([BLOCK_N, BLOCK_L], tl.float32)
        for i in range(BLOCK_N):
            # The same row for every prompt, in the layout of the prompts, so that threads exchange nothing.
            row = tl.minimum(first_n + i, number - 1).to(tl.int64) + tl.zeros([1, BLOCK_L, 1], tl.int64)
            row_at = image + row * kernel_stride_n + segment * kernel_stride_c
            same = tl.load(row_at, mask=segment < CHANNELS, other=0.0).to(tl.float32)
            # A sum, not tl.dot: fp32 throughout, and equal prompts have bit-equal cosines.
            product = tl.sum(tl.sum(same * unit_prompt, axis=0), axis=1)
            cosine = tl.where((tl.arange(0, BLOCK_N) == i)[:, None], product[None, :], cosine)
        cosine *= by_norm[:, None]
        usable = (l < real)[None, :] & (cosine == cosine)
        top = tl.max(tl.where(usable, cosine, float("-inf")), axis=1)
        first = tl.min(tl.where(usable & (cosine == top[:, None]), l[None, :], prompt_number), axis=1)
        better = (first < prompt_number) & ((chosen < 0) | (top > best))
        best = tl.where(better, top, best)
        chosen = tl.where(better, first, chosen)
        l += BLOCK_L  # noqa: E741
        prompt = prompt_block(
            prompt_image, l, prompt_number, segment, prompt_stride_l, prompt_stride_c, CHANNELS
        )

    out = b * number + n
    tl.store(index + out, chosen.to(tl.int64), mask=n < number)
    added_at = prompt_image + chosen.to(tl.int64)[:, None] * prompt_stride_l + c[None, :] * prompt_stride_c
    added = tl.load(added_at, mask=inside & (chosen >= 0)[:, None], other=0.0).to(tl.float32)
    sums = (kernel + added).to(decorated.dtype.element_ty)
    tl.store(decorated + out[:, None] * CHANNELS + c[None, :], sums, mask=inside)


@triton.jit
def sum_rows(grad, index, wanted, rows, stride, index_stride, c, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    """Sum columns c of the rows of grad whose index is `wanted`, or of all rows if index is None."""
    total = tl.zeros([c.shape[0]], tl.float32)
    for start in range(0, rows, BLOCK):
        row = start + tl.arange(0, BLOCK).to(tl.int64)
        mine = row < rows
        if index is not None:
            mine = tl.load(index + row * index_stride, mask=mine, other=-1) == wanted
        # Load only the rows that are summed.
        part = tl.load(grad + row[:, None] * stride, mask=mine[:, None] & (c < COLUMNS)[None, :], other=0.0)
        total += tl.sum(part.to(tl.float32), axis=0)
    return total


@triton.jit(do_not_specialize=["batch", "number", "prompt_number", "prompt_programs"])
def match_prompts_backward_kernel(
    grad,
    index,
    grad_kernels,
    grad_prompts,
    batch,
    number,
    prompt_number,
    prompt_programs,
    grad_stride_b,
    grad_stride_n,
    grad_stride_c,
    index_stride_b,
    index_stride_n,
    CHANNELS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_B: tl.constexpr,
    PROMPT_C: tl.constexpr,
    KERNEL_C: tl.constexpr,
):
    program = tl.program_id(0)
    if program < prompt_programs:
        prompt_row = program // tl.cdiv(CHANNELS, PROMPT_C)
        pc = (program % tl.cdiv(CHANNELS, PROMPT_C) * PROMPT_C + tl.arange(0, PROMPT_C)).to(tl.int64)
        b = (prompt_row // prompt_number).to(tl.int64)
        prompt_sum = sum_rows(
            grad + b * grad_stride_b + pc[None, :] * grad_stride_c,
            index + b * index_stride_b,
            prompt_row % prompt_number,
            number,
            grad_stride_n,
            index_stride_n,
            pc,
            BLOCK_N,
            CHANNELS,
        )
        prompt_at = grad_prompts + prompt_row.to(tl.int64) * CHANNELS + pc
        tl.store(prompt_at, prompt_sum.to(prompt_at.dtype.element_ty), mask=pc < CHANNELS)
    else:
        rest = program - prompt_programs
        kc = (rest % tl.cdiv(CHANNELS, KERNEL_C) * KERNEL_C + tl.arange(0, KERNEL_C)).to(tl.int64)
        n = (rest // tl.cdiv(CHANNELS, KERNEL_C)).to(tl.int64)
        kernel_sum = sum_rows(
            grad + n * grad_stride_n + kc[None, :] * grad_stride_c,
            None,
            0,
            batch,
            grad_stride_b,
            0,
            kc,
            BLOCK_B,
            CHANNELS,
        )
        kernel_at = grad_kernels + n * CHANNELS + kc
        tl.store(kernel_at, kernel_sum.to(kernel_at.dtype.element_ty), mask=kc < CHANNELS)


def plan_forward(
    kernels: Tensor, prompts: Tensor, count: Tensor | None, decorated: Tensor, index: Tensor
) -> Launch:
    """Plan the launch that fills `decorated` and `index`, both contiguous."""
    batch, prompt_number, channels = prompts.shape
    number = kernels.shape[-2]
    block_c = triton.next_power_of_2(channels)
    block_n = max(1, min(4, TILE // block_c))
    segment = up_to(64 // prompts.element_size(), channels)
    # fp32 prompts are held twice, as loaded and divided by their norms, besides the next block: with more of
    # them, registers allow two programs on a multiprocessor, and those of a training step take two waves.
    block_l = max(1, min(32, (TILE if prompts.element_size() == 4 else 4 * TILE) // block_c))
    arguments = {
        "kernels": kernels,
        "prompts": prompts,
        "count": count,
        "decorated": decorated,
        "index": index,
        "number": number,
        "prompt_number": prompt_number,
        **strides(kernel=(kernels.expand(batch, -1, -1), "bnc"), prompt=(prompts, "blc")),
        "count_stride": 0 if count is None else count.stride(0),
        "CHANNELS": channels,
        "BLOCK_N": block_n,
        "BLOCK_L": up_to(block_l, prompt_number),
        "SEGMENTS": block_c // segment,
        "SEGMENT": segment,
    }
    return Launch(match_prompts_forward, batch * triton.cdiv(number, block_n), arguments)


def plan_backward(
    grad: Tensor, index: Tensor, prompts: int, grad_kernels: Tensor, grad_prompts: Tensor
) -> Launch:
    """Plan the launch that fills the gradients, both contiguous; an empty gradient costs nothing."""
    batch, number, channels = grad.shape
    # Narrow tiles for prompts: all kernels of an image at once, so that no load waits for a second index.
    block_n, prompt_c = up_to(128, number), up_to(64, channels)
    block_b = up_to(16, batch)
    kernel_c = up_to(TILE // block_b, channels)
    prompt_programs = batch * prompts * triton.cdiv(channels, prompt_c) if grad_prompts.numel() else 0
    kernel_programs = number * triton.cdiv(channels, kernel_c) if grad_kernels.numel() else 0
    arguments = {
        "grad": grad,
        "index": index,
        "grad_kernels": grad_kernels,
        "grad_prompts": grad_prompts,
        "batch": batch,
        "number": number,
        "prompt_number": prompts,
        "prompt_programs": prompt_programs,
        **strides(grad=(grad, "bnc"), index=(index, "bn")),
        "CHANNELS": channels,
        "BLOCK_N": block_n,
        "BLOCK_B": block_b,
        "PROMPT_C": prompt_c,
        "KERNEL_C": kernel_c,
    }
    return Launch(match_prompts_backward_kernel, prompt_programs + kernel_programs, arguments)


def match_prompts(kernels: Tensor, prompts: Tensor, count: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Add to every kernel the prompt most similar to it (Eq. 6-8): decorated [B, N, C], index int64 [B, N].

    Args:
        kernels: kernels shared by all images [N, C] or per image [B, N, C], fp32, fp16 or bf16.
        prompts: prompts per image [B, L, C], same dtype.
        count: number of real prompts per image, int [B], clamped to [0, L]; the rest is padding.
    """
    batch, number, channels = prompts.shape[0], kernels.shape[-2], prompts.shape[2]
    decorated = torch.empty((batch, number, channels), dtype=prompts.dtype, device=prompts.device)
    index = torch.empty((batch, number), dtype=torch.int64, device=prompts.device)
    plan_forward(kernels, prompts, count, decorated, index).run(prompts.device)
    return decorated, index


def match_prompts_backward(
    grad: Tensor, index: Tensor, prompts: int, sum_kernels: bool, sum_prompts: bool
) -> tuple[Tensor, Tensor]:
    """Gradients of shared kernels, grad summed over images [N, C], and of prompts [B, L, C].

    The gradient of a prompt is the sum over the kernels that chose it. Sums are in fp32 and in a fixed order.

    Args:
        grad: gradient of the decorated kernels [B, N, C].
        index: prompt that the forward pass chose for each kernel, int64 [B, N].
        prompts: number of prompts L.
        sum_kernels: whether to compute the gradient of the kernels; else it is empty.
        sum_prompts: whether to compute the gradient of the prompts; else it is empty.
    """
    batch, number, channels = grad.shape
    empty = batch == 0 or number == 0
    make = torch.zeros if empty else torch.empty
    options = {"dtype": grad.dtype, "device": grad.device}
    grad_kernels = make((number, channels) if sum_kernels else (0,), **options)
    grad_prompts = make((batch, prompts, channels) if sum_prompts else (0,), **options)
    if not empty:
        plan_backward(grad, index, prompts, grad_kernels, grad_prompts).run(grad.device)
    return grad_kernels, grad_prompts
