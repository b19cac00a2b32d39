"""Prompt matching in Triton against the reference."""

import pytest
import torch

from sp_fast.ops import gradients, reference
from tests.kernels.kernel_cases import DTYPES, TOLERANCE, integers, normal, same_bits, scattered

FLOAT, HALF, BFLOAT = DTYPES
# Batch, kernels, prompts, channels, dtype, shared kernels: blocks that end in the middle, one element,
# several blocks of prompts, half precision and long vectors.
CASES = [
    (1, 100, 20, 256, FLOAT, True),
    (1, 333, 17, 63, FLOAT, True),
    (2, 1, 1, 1, FLOAT, False),
    (1, 7, 300, 300, FLOAT, True),
    (3, 9, 17, 1, FLOAT, True),
    (2, 9, 20, 256, HALF, False),
    (2, 9, 20, 256, BFLOAT, True),
    (2, 9, 20, 63, HALF, True),
    (2, 9, 20, 63, BFLOAT, False),
    (1, 3, 3, 2500, FLOAT, False),
]


def inputs(case, device):
    batch, number, prompts, channels, dtype, shared = case
    shape = (number, channels) if shared else (batch, number, channels)
    k = normal(*shape, seed=0, dtype=dtype, device=device)
    return k, normal(batch, prompts, channels, seed=1, dtype=dtype, device=device)


def assert_chosen(index, kernels, prompts, count=None):
    """Check that the index is that of a real prompt whose cosine is the largest up to rounding."""
    k, p = kernels.double(), prompts.double()
    cosine = reference._unit(k.expand(len(p), *k.shape[-2:])) @ reference._unit(p).transpose(1, 2)
    rows = torch.full((len(p),), p.shape[1], device=p.device) if count is None else count
    real = reference.first_rows(rows, len(p), p.shape[1], p.device)[:, None]
    cosine = torch.where(real & ~cosine.isnan(), cosine, -torch.inf)
    best = cosine.amax(-1)
    got = cosine.gather(2, index.clamp(min=0)[..., None])[..., 0]
    assert ((index >= 0) == (best > -torch.inf)).all()
    assert (got >= best - 1e-6).all()


@pytest.mark.parametrize("case", CASES)
def test_forward_equals_the_reference(kernels, device, case):
    k, p = inputs(case, device)
    count = None if case[2] == 20 else integers(0, case[2] + 1, (case[0],), seed=2, device=device)
    decorated, index = kernels.match_prompts(k, p, count)
    if case[3] > 1:  # with one channel every cosine is 1 or -1, and rounding chooses
        assert torch.equal(index, reference.match_prompts(k, p, count)[1])
    assert_chosen(index, k, p, count)
    assert same_bits(decorated, expected_of(k, p, index))


def expected_of(kernels, prompts, index):
    """Add the prompts with this index to the kernels."""
    where = index.clamp(min=0)[..., None].expand(-1, -1, prompts.shape[2])
    return kernels + torch.where((index >= 0)[..., None], prompts.gather(1, where), 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_strides(kernels, device, dtype):
    k, p = inputs((2, 9, 7, 33, dtype, False), device)
    count = torch.tensor([7, 3], device=device)
    expected = kernels.match_prompts(k, p, count)
    wide = torch.stack([count, count + 1], 1).int()[:, 0]
    got = kernels.match_prompts(scattered(k), scattered(p), wide)
    assert all(same_bits(a, b) for a, b in zip(got, expected, strict=True))
    expanded = kernels.match_prompts(k[:1].expand(2, -1, -1), p, count)
    assert same_bits(expanded[0], kernels.match_prompts(k[0], p, count)[0])


def test_ties_go_to_the_lowest_index(kernels, device):
    for channels in (37, 256):
        one = normal(1, 1, channels, seed=0, device=device)
        prompts = normal(1, 45, channels, seed=1, device=device) * 0.1 - one
        prompts[:, 6:43] = one  # across two blocks
        _, index = kernels.match_prompts(one[0] + 0.1 * normal(11, channels, seed=2, device=device), prompts)
        assert set(index.flatten().tolist()) == {6}


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # of the interpreter
def test_nan_and_padding_are_never_chosen(kernels, device):
    nan = torch.nan
    prompts = torch.tensor([[[nan, 1.0], [-1.0, -1.0], [1.0, 1.0], [torch.inf, 1.0]]], device=device)
    k = torch.ones(2, 2, device=device)
    for count, index in ((4, 2), (3, 2), (2, 1), (1, -1), (0, -1), (-5, -1), (99, 2)):
        decorated, got = kernels.match_prompts(k, prompts, torch.tensor([count], device=device))
        assert got.tolist() == [[index, index]]
        assert torch.equal(decorated[0], k + prompts[0, index] if index >= 0 else k)
    k[1, 0] = nan
    decorated, index = kernels.match_prompts(k, prompts)
    assert index.tolist() == [[2, -1]]
    assert decorated[0, 1].isnan().tolist() == [True, False]


def test_zero_vectors(kernels, device):
    k, p = torch.zeros(3, 5, device=device), normal(2, 4, 5, seed=0, device=device)
    assert (kernels.match_prompts(k, p)[1] == 0).all()
    p[:, 2] = 0
    k[1] = -p[0].sum(0)
    assert torch.equal(kernels.match_prompts(k, p)[1], reference.match_prompts(k, p)[1])


@pytest.mark.parametrize(
    ("batch", "number", "prompts", "channels", "dtype"),
    [
        (2, 100, 20, 256, FLOAT),
        (1, 333, 17, 63, FLOAT),
        (2, 1, 1, 1, FLOAT),
        (1, 7, 300, 63, FLOAT),
        (20, 2, 3, 300, FLOAT),
        (2, 50, 3, 256, HALF),
        (2, 50, 3, 256, BFLOAT),
    ],
)
def test_backward_equals_the_reference(kernels, device, batch, number, prompts, channels, dtype):
    index = integers(-1, prompts, (batch, number), seed=0, device=device)
    grad = normal(batch, number, channels, seed=1, dtype=dtype, device=device)
    got = kernels.match_prompts_backward(grad, index, prompts, True, True)
    expected = gradients.match_prompts_backward(grad, index, prompts, True, True)
    tolerance = TOLERANCE[dtype] * 4
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_of_what_is_wanted_with_any_strides(kernels, device, dtype):
    index = integers(-1, 3, (2, 6), seed=0, device=device)
    grad = normal(2, 6, 33, seed=1, dtype=dtype, device=device)
    of_kernels, of_prompts = kernels.match_prompts_backward(grad, index, 3, True, True)
    loose = scattered(grad), scattered(index)
    only_kernels, nothing = kernels.match_prompts_backward(*loose, 3, True, False)
    assert same_bits(only_kernels, of_kernels)
    assert nothing.numel() == 0
    nothing, only_prompts = kernels.match_prompts_backward(*loose, 3, False, True)
    assert same_bits(only_prompts, of_prompts)
    assert nothing.numel() == 0


def test_backward_of_an_expanded_gradient(kernels, device):
    grad = torch.full((), 2.0, device=device).expand(2, 6, 5)
    index = torch.tensor([[0, 0, 1, -1, 0, 1]] * 2, device=device)
    of_kernels, of_prompts = kernels.match_prompts_backward(grad, index, 3, True, True)
    assert torch.equal(of_kernels, torch.full((6, 5), 4.0, device=device))
    assert of_prompts[0, :, 0].tolist() == [6, 4, 0]


def test_a_nan_stays_in_its_row(kernels, device):
    grad = normal(1, 4, 5, seed=0, device=device)
    grad[0, 1] = torch.nan
    index = torch.tensor([[2, 1, 2, -1]], device=device)
    of_prompts = kernels.match_prompts_backward(grad, index, 3, False, True)[1]
    assert of_prompts.isnan().any(-1).tolist() == [[False, True, False]]


@pytest.mark.parametrize(
    ("batch", "number", "prompts"), [(0, 3, 4), (2, 0, 4), (2, 3, 0), (0, 0, 0)], ids=["B", "N", "L", "all"]
)
def test_empty(kernels, device, batch, number, prompts):
    k, p = inputs((batch, number, prompts, 8, FLOAT, True), device)
    decorated, index = kernels.match_prompts(k, p)
    assert decorated.shape == (batch, number, 8)
    assert (index == -1).all()
    if prompts == 0:
        assert torch.equal(decorated, k.expand_as(decorated))
    grad = torch.ones(batch, number, 8, device=device)
    of_kernels, of_prompts = kernels.match_prompts_backward(grad, index, prompts, True, True)
    assert torch.equal(of_kernels, torch.full((number, 8), float(batch), device=device))
    assert torch.equal(of_prompts, torch.zeros(batch, prompts, 8, device=device))


def test_two_runs_give_the_same_bits(kernels, device):
    k, p = inputs((2, 20, 9, 64, FLOAT, True), device)
    index = integers(-1, 9, (2, 20), seed=3, device=device)
    grad = normal(2, 20, 64, seed=4, device=device)
    first, second = (
        (*kernels.match_prompts(k, p), *kernels.match_prompts_backward(grad, index, 9, True, True))
        for _ in range(2)
    )
    assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))
