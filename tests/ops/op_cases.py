"""Inputs and comparisons that several op tests share."""

from contextlib import contextmanager

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from sp_fast.ops.extension import COMPILED
from sp_fast.ops.packed_masks import PackedMasks

needs_extension = pytest.mark.skipif(not COMPILED, reason="sp_fast._C is not built")

SEEDS = st.integers(0, 2**31 - 1)
HALVES_AND_FLOAT = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])

# Tolerance against the reference: rounding of the result, and of sums in another order.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def generator(seed: int) -> torch.Generator:
    """A separate random generator for each example."""
    return torch.Generator().manual_seed(seed)


@contextmanager
def poisoned_memory():
    """Fill new memory with NaN or the largest integer, so that elements an op leaves unwritten show."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(2).isnan().all()
    yield
    torch.use_deterministic_algorithms(deterministic)


def scattered(x: Tensor) -> Tensor:
    """Copy x to memory that is not contiguous."""
    wide = x.new_empty(*x.shape, 2)
    wide[..., 1] = x
    return wide[..., 1]


def assert_near(got: Tensor, expected: Tensor) -> None:
    """Check shape and dtype, and values within the tolerance of the dtype; NaN equals NaN."""
    tolerance = TOLERANCE[expected.dtype]
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@st.composite
def masks_and_scores(draw) -> tuple[PackedMasks, Tensor]:
    """Masks of few cells with few different scores, which give ties and overlaps of every kind."""
    batch, number = draw(st.integers(0, 3)), draw(st.integers(0, 12))
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 13))
    random = generator(draw(SEEDS))
    masks = torch.rand(batch, number, height, width, generator=random) < draw(
        st.sampled_from([0.1, 0.5, 0.9])
    )
    if number > 2:
        masks[:, 1] = masks[:, 0]
        masks[:, 2] = False
    values = torch.tensor([0.0, -0.0, 0.25, 0.5, 1.0, -1.0, torch.nan, torch.inf, -torch.inf])
    score = values[torch.randint(len(values), (batch, number), generator=random)]
    score = score.to(draw(HALVES_AND_FLOAT))
    packed = PackedMasks.pack(masks)
    if draw(st.booleans()):
        packed = PackedMasks(scattered(packed.words), height, width)
        score = scattered(score)
    return packed, score


@st.composite
def masks_in_parts(draw) -> tuple[Tensor, dict[str, int]]:
    """Masks bool [..., H, W] from sparse to full, and options of connected_parts."""
    leading = draw(st.lists(st.integers(0, 3), max_size=2))
    height, width = draw(st.integers(0, 12)), draw(st.integers(0, 70))
    density = draw(st.sampled_from([0.0, 0.1, 0.4, 0.6, 0.9, 1.0]))
    masks = torch.rand(*leading, height, width, generator=generator(draw(SEEDS))) < density
    options = {
        "max_parts": draw(st.sampled_from([1, 2, 8, 300])),
        "min_area": draw(st.sampled_from([0, 1, 2, 5, 2**40])),
        "connectivity": draw(st.sampled_from([4, 8])),
    }
    return masks, options


def spiral(size: int) -> Tensor:
    """A path one cell wide that winds inwards, bool [size, size]."""
    cells = torch.zeros(size, size, dtype=torch.bool)
    for k in range(0, (size - 1) // 2, 2):
        ring = cells[k : size - k, k : size - k]
        ring[[0, -1]] = ring[:, [0, -1]] = True
        cells[k + 1, k], cells[k + 2, k + 1] = False, True  # from this ring to the next
    return cells


def checkerboard(height: int, width: int) -> Tensor:
    """Every other cell, from the first on, bool [height, width]."""
    return (torch.arange(height)[:, None] + torch.arange(width)) % 2 == 0


@st.composite
def taken_tables(draw) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Words, scores, seeds and the chosen rows, for take_proposals."""
    batch, number, most = draw(st.integers(0, 3)), draw(st.integers(0, 5)), draw(st.integers(0, 6))
    words, channels = draw(st.integers(0, 40)), draw(st.sampled_from([0, 1, 3, 8, 300]))
    random = generator(draw(SEEDS))
    tables = (
        torch.randint(-9, 9, (batch, number, words), generator=random, dtype=torch.int32),
        torch.randn(batch, number, generator=random),
        torch.randn(batch, number, channels, generator=random).to(draw(HALVES_AND_FLOAT)),
        torch.randint(-1, number + 1, (batch, most), generator=random),
    )
    return tuple(map(scattered, tables)) if draw(st.booleans()) else tables


def draw_maps(draw, depths, whole: bool) -> tuple[Tensor, Tensor | None, torch.Generator]:
    """Features [B, D, H, W] (small integers or normal), sizes of their valid parts, and the generator.

    The padding holds NaN and infinity.
    """
    batch, depth = draw(st.integers(0, 3)), draw(depths)
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 21))
    random = generator(draw(SEEDS))
    shape = (batch, depth, height, width)
    draws = torch.randint(-3, 4, shape, generator=random) if whole else torch.randn(shape, generator=random)
    features = draws.to(draw(HALVES_AND_FLOAT))
    valid = None
    if draw(st.booleans()):
        valid = torch.stack(
            [torch.randint(1, n + 1, (batch,), generator=random) for n in (height, width)], dim=1
        )
        for image, (rows, columns) in enumerate(valid.tolist()):
            features[image, :, rows:] = torch.nan
            features[image, :, :, columns:] = torch.inf
        valid = valid.to(draw(st.sampled_from([torch.int32, torch.int64])))
    return features, valid, random
