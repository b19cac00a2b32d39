"""Maps upsampled bilinearly by 2 in Triton, cell centres aligned: the cells around each small cell."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def neighbours(maps, y, x, height, width, inside):
    """Load the 3 x 3 cells around (y, x) of contiguous maps in fp32, row by row; borders are repeated."""
    above = tl.maximum(y - 1, 0) * width
    here = y * width
    below = tl.minimum(y + 1, height - 1) * width
    left = tl.maximum(x - 1, 0)
    right = tl.minimum(x + 1, width - 1)
    return (
        tl.load(maps + (above + left), mask=inside, other=0.0).to(tl.float32),
        tl.load(maps + (above + x), mask=inside, other=0.0).to(tl.float32),
        tl.load(maps + (above + right), mask=inside, other=0.0).to(tl.float32),
        tl.load(maps + (here + left), mask=inside, other=0.0).to(tl.float32),
        tl.load(maps + (here + x), mask=inside, other=0.0).to(tl.float32),
        tl.load(maps + (here + right), mask=inside, other=0.0).to(tl.float32),
        tl.load(maps + (below + left), mask=inside, other=0.0).to(tl.float32),
        tl.load(maps + (below + x), mask=inside, other=0.0).to(tl.float32),
        tl.load(maps + (below + right), mask=inside, other=0.0).to(tl.float32),
    )


@triton.jit
def between(before, here, after, PART: tl.constexpr):
    """The upsampled cell 2 y + PART - 1 of a line, PART in 0..3, from the cells y - 1, y and y + 1."""
    if PART == 0:
        value = 0.75 * before + 0.25 * here
    elif PART == 1:
        value = 0.25 * before + 0.75 * here
    elif PART == 2:
        value = 0.75 * here + 0.25 * after
    else:
        value = 0.25 * here + 0.75 * after
    return value


@triton.jit
def cell(around, I: tl.constexpr, J: tl.constexpr):  # noqa: E741
    """The upsampled cell (2 y + I - 1, 2 x + J - 1), from the `neighbours` of (y, x)."""
    left = between(around[0], around[3], around[6], I)
    middle = between(around[1], around[4], around[7], I)
    right = between(around[2], around[5], around[8], I)
    return between(left, middle, right, J)


@triton.jit
def share(at, size, PART: tl.constexpr):
    """Weight of cell `at` of a line in the upsampled cell 2 at + PART - 1; 0 if there is no such cell."""
    if PART == 0:
        weight = tl.where(at > 0, 0.25, 0.0)
    elif PART == 1:
        weight = tl.where(at > 0, 0.75, 1.0)
    elif PART == 2:
        weight = tl.where(at < size - 1, 0.75, 1.0)
    else:
        weight = tl.where(at < size - 1, 0.25, 0.0)
    return weight


@triton.jit
def at_cell(y, x, height, width, I: tl.constexpr, J: tl.constexpr):  # noqa: E741
    """Place of the upsampled cell (2 y + I - 1, 2 x + J - 1) in its map, clamped to the map."""
    row = tl.minimum(tl.maximum(2 * y + (I - 1), 0), 2 * height - 1)
    column = tl.minimum(tl.maximum(2 * x + (J - 1), 0), 2 * width - 1)
    return row * 2 * width + column


@triton.jit
def probability_and_log(z):
    """sigmoid(z) and log(1 + exp(z)), neither of which overflows nor loses small values."""
    e = tl.exp(-tl.abs(z))
    s = e / (2.0 + e)
    square = s * s
    series = 1.0 / 13.0
    series = series * square + 1.0 / 11.0
    series = series * square + 1.0 / 9.0
    series = series * square + 1.0 / 7.0
    series = series * square + 1.0 / 5.0
    series = series * square + 1.0 / 3.0
    log = 2.0 * (s + s * (square * series))  # 2 artanh(s) = log(1 + e)
    return tl.where(z >= 0, 1.0, e) / (1.0 + e), tl.maximum(z, 0.0) + log
