"""Deformable attention in Triton against the reference."""

import pytest
import torch

from sp_fast.ops import deformable_reference
from tests.kernels.kernel_cases import DTYPES, TOLERANCE, normal, same_bits, scattered
from tests.ops.deformable_cases import inside_cells

FLOAT, HALF, BFLOAT = DTYPES
SIDES = [(4, 3), (1, 1), (5, 7)]
# Levels, batch, queries, heads, points, channels per head, dtype: one element, blocks that end in the middle,
# several blocks of queries, odd and long vectors, half precision.
CASES = [
    (SIDES, 2, 40, 2, 2, 32, FLOAT),
    (SIDES[:1], 1, 1, 1, 1, 1, FLOAT),
    (SIDES[1:], 1, 37, 3, 2, 24, FLOAT),
    (SIDES[:2], 1, 2, 1, 1, 1100, FLOAT),
    (SIDES[:2], 1, 20, 2, 3, 32, HALF),
    (SIDES[:2], 1, 20, 1, 2, 9, BFLOAT),
]


def inputs(case, device, seed=0):
    sides, batch, queries, heads, points, depth, dtype = case
    numbers = {"batch": batch, "queries": queries, "heads": heads, "points": points, "depth": depth}
    random = torch.Generator().manual_seed(seed)
    return tuple(x.to(device) for x in inside_cells(sides, random, dtype=dtype, **numbers))


def wide(values):
    return [x.cpu().double() if x.is_floating_point() else x.cpu() for x in values]


def assert_near(got, expected, dtype):
    tolerance = TOLERANCE[dtype] * 16
    torch.testing.assert_close(got.cpu().double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", CASES)
def test_forward_equals_the_reference(kernels, device, case):
    values = inputs(case, device)
    got = kernels.deformable_attention(*values)
    assert got.dtype == case[-1]
    assert_near(got, deformable_reference.deformable_attention(*wide(values)), case[-1])


@pytest.mark.parametrize("case", CASES)
def test_backward_equals_the_reference(kernels, device, case):
    values = inputs(case, device)
    grad = normal(case[1], case[2], case[3] * case[5], seed=1, dtype=case[-1], device=device)
    found = kernels.deformable_attention_backward(grad, *values)
    assert [x.dtype for x in found] == [case[-1], FLOAT, FLOAT]
    expected = deformable_reference.deformable_attention_backward(*wide((grad, *values)))
    # Gradients of locations and weights are sums over the channels.
    for got, other in zip(found, expected, strict=True):
        scale = max(1.0, other.abs().max().item())
        assert_near(got / scale, other / scale, case[-1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_strides(kernels, device, dtype):
    values = inputs((SIDES[:2], 2, 3, 2, 1, 9, dtype), device)
    loose = [scattered(x) for x in values]
    expected = kernels.deformable_attention(*values)
    assert same_bits(kernels.deformable_attention(*loose), expected)
    grad = normal(2, 3, 18, seed=1, dtype=dtype, device=device)
    pairs = zip(
        kernels.deformable_attention_backward(scattered(grad), *loose),
        kernels.deformable_attention_backward(grad, *values),
        strict=True,
    )
    (of_value, other), *others = pairs
    torch.testing.assert_close(of_value, other)  # added in another order
    assert all(same_bits(a, b) for a, b in others)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # of the interpreter
@pytest.mark.parametrize("far", [torch.nan, torch.inf, -torch.inf, 1e30, -5.0])
def test_points_far_outside_read_nothing(kernels, device, far):
    values = inputs((SIDES[:1], 1, 4, 1, 1, 8, FLOAT), device)
    for k in (0, 1):
        values[2][:, 1, ..., k] = far
        assert not kernels.deformable_attention(*values)[:, 1].any()
        found = kernels.deformable_attention_backward(torch.ones(1, 4, 8, device=device), *values)
        assert found[0].isfinite().all()
        assert not found[1][:, 1].any()
        assert not found[2][:, 1].any()


def test_a_nan_reaches_only_what_reads_it(kernels, device):
    value, sizes, locations, weights = inputs(([(4, 4)], 1, 2, 2, 1, 8, FLOAT), device)
    locations[0, 0], locations[0, 1] = 0.3, 0.7
    value[0, :5, 1] = torch.nan
    got = kernels.deformable_attention(value, sizes, locations, weights).view(2, 2, 8)
    assert got.isnan().all(-1).tolist() == [[False, True], [False, False]]
    assert got.isnan().any(-1).tolist() == [[False, True], [False, False]]


def test_sizes_that_do_not_match(kernels, device):
    """Sizes are not checked on a GPU: what lies outside the values is not read."""
    value, sizes, locations, weights = inputs((SIDES, 1, 9, 2, 2, 8, FLOAT), device)
    whole = torch.cat(
        [value.new_full((1, 40, 2, 8), torch.nan), value, value.new_full((1, 40, 2, 8), torch.nan)], 1
    )
    inner = whole[:, 40:-40]
    for wrong in (sizes * 3, -sizes, sizes * 2**20):
        got = kernels.deformable_attention(inner, wrong, locations, weights)
        assert got.isfinite().all()


@pytest.mark.parametrize("number", ["batch", "queries", "heads", "points", "depth"])
def test_empty(kernels, device, number):
    numbers = {"batch": 2, "queries": 3, "heads": 2, "points": 2, "depth": 4, number: 0}
    random = torch.Generator().manual_seed(0)
    values = tuple(x.to(device) for x in inside_cells(SIDES, random, dtype=FLOAT, **numbers))
    got = kernels.deformable_attention(*values)
    assert got.shape == (numbers["batch"], numbers["queries"], numbers["heads"] * numbers["depth"])
    assert not got.any()
    found = kernels.deformable_attention_backward(torch.ones_like(got), *values)
    for gradient, of in zip(found, (values[0], *values[2:]), strict=True):
        assert gradient.shape == of.shape
        assert not gradient.any()
