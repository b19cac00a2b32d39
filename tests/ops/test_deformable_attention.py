"""Multi-scale deformable attention."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sp_fast.ops import deformable_attention, deformable_reference
from tests.ops.deformable_cases import inside_cells
from tests.ops.op_cases import SEEDS, TOLERANCE, assert_near, generator, needs_extension, scattered

SIDES = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=3)
DEPTHS = st.sampled_from([0, 1, 3, 8, 19, 32, 44])


@st.composite
def cases(draw):
    sides, random = draw(SIDES), generator(draw(SEEDS))
    numbers = {name: draw(st.integers(0, 3)) for name in ("batch", "queries", "heads", "points")}
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))
    value, sizes, locations, weights = inside_cells(sides, random, depth=draw(DEPTHS), dtype=dtype, **numbers)
    if locations.numel() and draw(st.booleans()):
        places = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30])
        locations.view(-1)[torch.randint(locations.numel(), (1,), generator=random)] = draw(
            st.sampled_from(places.tolist())
        )
    inputs = value, sizes.to(draw(st.sampled_from([torch.int32, torch.int64]))), locations, weights
    return tuple(map(scattered, inputs)) if draw(st.booleans()) else inputs


def with_gradients(op, value, sizes, locations, weights):
    """The result, and the gradients of value, locations and weights for a gradient that varies by element."""
    leaves = [x.detach().requires_grad_() for x in (value, locations, weights)]
    result = op(leaves[0], sizes, *leaves[1:])
    grad = (torch.arange(result.numel()) * 37 % 101 - 50).view(result.shape).to(result.dtype) / 64
    return result.detach(), *torch.autograd.grad(result, leaves, grad)


@needs_extension
@given(cases())
def test_forward_and_backward_equal_the_reference(case):
    value, sizes, locations, weights = case
    found = with_gradients(deformable_attention, *case)
    wide = (value.double(), sizes, locations.double(), weights.double())
    expected = with_gradients(deformable_reference.deformable_attention, *wide)
    assert [x.dtype for x in found] == [value.dtype, value.dtype, locations.dtype, weights.dtype]
    # Offsets within a cell are known to the rounding of a location, times the map's side.
    tolerance = TOLERANCE[value.dtype] * 16
    for got, other in zip(found, expected, strict=True):
        torch.testing.assert_close(got.double(), other, rtol=tolerance, atol=tolerance)


@given(cases())
def test_gradients_without_autograd(case):
    value, sizes, locations, weights = (x.double() if x.is_floating_point() else x for x in case)
    result, *expected = with_gradients(
        deformable_reference.deformable_attention, value, sizes, locations, weights
    )
    grad = (torch.arange(result.numel()) * 37 % 101 - 50).view(result.shape).double() / 64
    got = deformable_reference.deformable_attention_backward(grad, value, sizes, locations, weights)
    for one, other in zip(got, expected, strict=True):
        assert_near(one, other)


def test_gradcheck():
    value, sizes, locations, weights = inside_cells(
        [(4, 3), (2, 5)], generator(0), batch=2, queries=3, heads=2, points=2, depth=5, dtype=torch.float64
    )
    inputs = tuple(x.requires_grad_() for x in (value, locations, weights))
    assert torch.autograd.gradcheck(lambda v, l, w: deformable_attention(v, sizes, l, w), inputs)  # noqa: E741


def test_interpolation():
    """One row of cells, 0 1 2: interpolated between their centres, fading to 0 beyond the outer ones."""
    value = torch.tensor([0.0, 1.0, 2.0]).view(1, 3, 1, 1)
    x = torch.tensor([1 / 6, 1 / 2, 2 / 3, 5 / 6, 1.0, 7 / 6, 2.0, -1.0])
    locations = torch.stack([x, torch.full_like(x, 0.5)], -1).view(1, 8, 1, 1, 1, 2)
    found = deformable_attention(value, torch.tensor([[1, 3]]), locations, torch.full((1, 8, 1, 1, 1), 3.0))
    torch.testing.assert_close(found.flatten(), torch.tensor([0, 3, 4.5, 6, 3, 0, 0, 0]), rtol=0, atol=1e-5)


def test_a_nan_reaches_only_what_reads_it():
    value, sizes, locations, weights = inside_cells(
        [(4, 4)], generator(1), batch=1, queries=2, heads=2, points=1, depth=8, dtype=torch.float32
    )
    locations[0, 0], locations[0, 1] = 0.25, 0.75  # the upper left and the lower right quarter
    value[0, :5, 1] = torch.nan  # the first row and one cell of the next, in one head
    result, of_value, of_locations, of_weights = with_gradients(
        deformable_attention, value, sizes, locations, weights
    )
    assert result.view(2, 2, 8).isnan().all(-1).tolist() == [[False, True], [False, False]]
    assert not of_value.isnan().any()
    for gradient in (of_locations, of_weights):
        assert gradient[0].flatten(2).isnan().all(-1).tolist() == [[False, True], [False, False]]


def test_half_locations_get_half_gradients():
    value, sizes, locations, weights = inside_cells(
        [(4, 4)], generator(2), batch=1, queries=2, heads=2, points=2, depth=8, dtype=torch.float32
    )
    halves = value.bfloat16(), sizes, locations.bfloat16(), weights.bfloat16()
    found = with_gradients(deformable_attention, *halves)
    assert {x.dtype for x in found} == {torch.bfloat16}
    wide = [x.double() if x.is_floating_point() else x for x in halves]
    for got, expected in zip(
        found, with_gradients(deformable_reference.deformable_attention, *wide), strict=True
    ):
        torch.testing.assert_close(got.double(), expected, rtol=8e-3, atol=8e-3)


def test_does_not_depend_on_threads(threads):
    case = inside_cells(
        [(9, 7), (5, 4)], generator(3), batch=2, queries=200, heads=3, points=2, depth=24, dtype=torch.float32
    )
    results = []
    for number in (1, 2, 3):
        threads(number)
        results.append(with_gradients(deformable_attention, *case))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


V, S = torch.randn(2, 22, 3, 4), torch.tensor([[4, 3], [2, 5]])
L, W = torch.rand(2, 6, 3, 2, 2, 2), torch.rand(2, 6, 3, 2, 2)


@pytest.mark.parametrize(
    ("inputs", "error", "message"),
    [
        ((V[0], S, L, W), ValueError, r"value: expected shape \[B, K, M, D\], got \[22, 3, 4\]"),
        ((V.long(), S, L, W), TypeError, "value: expected dtype"),
        ((V, S.float(), L, W), TypeError, "sizes: expected dtype int64 or int32, got float32"),
        ((V, S[:0], L[:, :, :, :0], W[:, :, :, :0]), ValueError, "sizes: expected at least one level"),
        ((V, S + 1, L, W), ValueError, "sizes: expected .* 22 cells in all"),
        (
            (V, S * torch.tensor([1, -1]), L, W),
            ValueError,
            "sizes: expected heights and widths of at least 1",
        ),
        ((V, S * 2**31, L, W), ValueError, "sizes: expected .* 22 cells in all"),
        ((V, S[:1], L[:, :, :, :1], W[:, :, :, :1]), ValueError, "sizes: expected .*22 cells in all"),
        ((V, S, L[:1], W), ValueError, r"locations: expected shape \[2, Q, 3, 2, P, 2\]"),
        ((V, S, L, W[..., :1]), ValueError, r"weights: expected shape \[2, 6, 3, 2, 2\]"),
        ((V, S, L, None), TypeError, "weights: expected a tensor, got NoneType"),
    ],
)
def test_errors(inputs, error, message):
    with pytest.raises(error, match=message):
        deformable_attention(*inputs)


@needs_extension
def test_the_compiled_op_checks_its_arguments():
    op, backward = (getattr(torch.ops.sp_fast, f"deformable_attention{x}") for x in ("", "_backward"))
    with pytest.raises(TypeError, match="locations: expected dtype Float"):
        op(V, S, L.double(), W)
    with pytest.raises(ValueError, match="weights: expected shape"):
        op(V, S, L, W[:, :5])
    with pytest.raises(ValueError, match="grad: expected shape"):
        backward(torch.ones(2, 6, 11), V, S, L, W)


@needs_extension
def test_opcheck():
    inputs = tuple(x.clone().requires_grad_() if x.is_floating_point() else x for x in (V, S, L, W))
    torch.library.opcheck(torch.ops.sp_fast.deformable_attention.default, inputs)
    torch.library.opcheck(
        torch.ops.sp_fast.deformable_attention_backward.default, (torch.randn(2, 6, 12), V, S, L, W)
    )
