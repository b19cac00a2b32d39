"""Multi-scale deformable attention in Triton: one kernel forward, one backward.

A program handles neighbouring queries of one head, which mostly read the same cells, so that these come from
the L1 cache. Backward, the gradient of the values is added atomically in fp32, since queries of many programs
read the same cell.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch, up_to

# Elements of a tile of queries and channels, held several times: once per cell around a point.
TILE = 1024


@triton.jit
def queries_of(queries, HEADS: tl.constexpr, BLOCK_Q: tl.constexpr):
    """The program's image, head and queries, and the index of each among all images, queries and heads."""
    blocks = tl.cdiv(queries, BLOCK_Q)
    program = tl.program_id(0)
    head = program // blocks % HEADS
    image = (program // blocks // HEADS).to(tl.int64)
    q = program % blocks * BLOCK_Q + tl.arange(0, BLOCK_Q)
    return image, head, q, (image * queries + q) * HEADS + head


@triton.jit
def located(location, real, height, width):
    """Column and row of the upper left of the four cells around a point, and the offset from its centre."""
    x = tl.load(location, mask=real, other=-1.0) * width - 0.5
    y = tl.load(location + 1, mask=real, other=-1.0) * height - 0.5
    # False for NaN too. A point that reads nothing gets a column outside the map.
    near = (x > -1) & (x < width) & (y > -1) & (y < height)
    x = tl.where(near, x, -2.0)
    y = tl.where(near, y, -2.0)
    column = tl.floor(x)
    row = tl.floor(y)
    return column.to(tl.int32), row.to(tl.int32), x - column, y - row


@triton.jit
def cell(column, row, height, width, start, keys):
    """Index of a cell among those of all levels, and whether there is such a cell."""
    index = start + row * width + column
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    # The sizes are not checked on a GPU.
    return index.to(tl.int64), inside & (index >= 0) & (index < keys)


@triton.jit
def loaded(values, index, inside, real, STRIDE: tl.constexpr):
    """Values of one cell per query in fp32, zero where there is none."""
    return tl.load(values + index[:, None] * STRIDE, mask=inside[:, None] & real, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["keys", "queries"])
def attend(
    value,
    sizes,
    locations,
    weights,
    out,
    keys,
    queries,
    HEADS: tl.constexpr,
    DEPTH: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    image, head, q, at = queries_of(queries, HEADS, BLOCK_Q)
    d = tl.arange(0, BLOCK_D)
    asked = q < queries
    real = (d < DEPTH)[None, :]
    stride: tl.constexpr = HEADS * DEPTH
    values = value + image * keys * stride + head * DEPTH + d[None, :]
    total = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    start = 0
    for level in range(LEVELS):
        height = tl.load(sizes + 2 * level).to(tl.int32)
        width = tl.load(sizes + 2 * level + 1).to(tl.int32)
        for point in range(POINTS):
            i = (at * LEVELS + level) * POINTS + point
            column, row, right, lower = located(locations + 2 * i, asked, height, width)
            weight = tl.load(weights + i, mask=asked, other=0.0)
            for corner in tl.static_range(4):
                index, inside = cell(column + corner % 2, row + corner // 2, height, width, start, keys)
                share = weight * (right if corner % 2 else 1 - right) * (lower if corner // 2 else 1 - lower)
                total += share[:, None] * loaded(values, index, inside, real, stride)
        start += height * width
    tl.store(
        out + at[:, None] * DEPTH + d[None, :], total.to(out.dtype.element_ty), mask=asked[:, None] & real
    )


@triton.jit(do_not_specialize=["keys", "queries"])
def attend_backward(
    grad,
    value,
    sizes,
    locations,
    weights,
    grad_value,
    grad_locations,
    grad_weights,
    keys,
    queries,
    HEADS: tl.constexpr,
    DEPTH: tl.constexpr,
    LEVELS: tl.constexpr,
    POINTS: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    image, head, q, at = queries_of(queries, HEADS, BLOCK_Q)
    d = tl.arange(0, BLOCK_D)
    asked = q < queries
    real = (d < DEPTH)[None, :]
    stride: tl.constexpr = HEADS * DEPTH
    first = image * keys * stride + head * DEPTH + d[None, :]
    given = tl.load(grad + at[:, None] * DEPTH + d[None, :], mask=asked[:, None] & real, other=0.0)
    given = given.to(tl.float32)
    start = 0
    for level in range(LEVELS):
        height = tl.load(sizes + 2 * level).to(tl.int32)
        width = tl.load(sizes + 2 * level + 1).to(tl.int32)
        for point in range(POINTS):
            i = (at * LEVELS + level) * POINTS + point
            column, row, right, lower = located(locations + 2 * i, asked, height, width)
            weight = tl.load(weights + i, mask=asked, other=0.0)
            by_weight = tl.zeros([BLOCK_Q], tl.float32)
            by_x = tl.zeros([BLOCK_Q], tl.float32)
            by_y = tl.zeros([BLOCK_Q], tl.float32)
            for corner in tl.static_range(4):
                index, inside = cell(column + corner % 2, row + corner // 2, height, width, start, keys)
                along_x = right if corner % 2 else 1 - right
                along_y = lower if corner // 2 else 1 - lower
                product = tl.sum(given * loaded(value + first, index, inside, real, stride), axis=1)
                by_weight += along_x * along_y * product
                by_x += along_y * (product if corner % 2 else -product)
                by_y += along_x * (product if corner // 2 else -product)
                tl.atomic_add(
                    grad_value + first + index[:, None] * stride,
                    (weight * along_x * along_y)[:, None] * given,
                    mask=inside[:, None] & real,
                    sem="relaxed",
                )
            tl.store(grad_weights + i, by_weight, mask=asked)
            tl.store(grad_locations + 2 * i, weight * width * by_x, mask=asked)
            tl.store(grad_locations + 2 * i + 1, weight * height * by_y, mask=asked)
        start += height * width


def _shared(value: Tensor, sizes: Tensor, locations: Tensor, weights: Tensor) -> tuple[int, dict]:
    """Number of programs, and the arguments of both kernels."""
    batch, keys, heads, depth = value.shape
    queries, levels, points = (locations.shape[k] for k in (1, 3, 4))
    block_d = triton.next_power_of_2(depth)
    block_q = up_to(max(1, TILE // block_d), queries)
    arguments = {
        "value": value.contiguous(),
        "sizes": sizes.contiguous(),
        "locations": locations.contiguous(),
        "weights": weights.contiguous(),
        "keys": keys,
        "queries": queries,
        "HEADS": heads,
        "DEPTH": depth,
        "LEVELS": levels,
        "POINTS": points,
        "BLOCK_Q": block_q,
        "BLOCK_D": block_d,
    }
    return batch * heads * triton.cdiv(queries, block_q), arguments


def plan_forward(value: Tensor, sizes: Tensor, locations: Tensor, weights: Tensor, out: Tensor) -> Launch:
    """Plan the launch that fills `out`, contiguous."""
    programs, arguments = _shared(value, sizes, locations, weights)
    return Launch(attend, programs, {**arguments, "out": out})


def plan_backward(
    grad: Tensor,
    value: Tensor,
    sizes: Tensor,
    locations: Tensor,
    weights: Tensor,
    grad_value: Tensor,
    grad_locations: Tensor,
    grad_weights: Tensor,
) -> Launch:
    """Plan the launch that adds to `grad_value`, fp32 zeros, and fills the others; all contiguous."""
    programs, arguments = _shared(value, sizes, locations, weights)
    gradients = {"grad_value": grad_value, "grad_locations": grad_locations, "grad_weights": grad_weights}
    return Launch(attend_backward, programs, {"grad": grad.contiguous(), **arguments, **gradients})


def deformable_attention(value: Tensor, sizes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of values at a few points of each level: [B, Q, M * D].

    Args:
        value: cells of all levels [B, K, M, D], fp32, fp16 or bf16.
        sizes: height and width of each level, int [L, 2].
        locations: x and y in units of the map's sides, fp32 [B, Q, M, L, P, 2].
        weights: fp32 [B, Q, M, L, P].
    """
    batch, _, heads, depth = value.shape
    out = torch.empty((batch, locations.shape[1], heads * depth), dtype=value.dtype, device=value.device)
    if out.numel():
        plan_forward(value, sizes, locations, weights, out).run(value.device)
    return out


def deformable_attention_backward(
    grad: Tensor, value: Tensor, sizes: Tensor, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights; `grad` [B, Q, M * D] is that of the result."""
    grad_value = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
    make = torch.empty if grad.numel() else torch.zeros
    grad_locations, grad_weights = (
        make(x.shape, dtype=torch.float32, device=value.device) for x in (locations, weights)
    )
    if grad.numel():
        gradients = grad_value, grad_locations, grad_weights
        plan_backward(grad, value, sizes, locations, weights, *gradients).run(value.device)
    return grad_value.to(value.dtype), grad_locations, grad_weights
