"""Prompt-kernel matching."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from sp_fast.ops import gradients, match_prompts, reference
from tests.ops.op_cases import SEEDS, TOLERANCE, assert_near, generator, needs_extension, scattered


@st.composite
def cases(draw):
    batch, kernels, number = draw(st.integers(0, 3)), draw(st.integers(0, 9)), draw(st.integers(0, 7))
    channels = draw(st.integers(2, 40))
    random = generator(draw(SEEDS))
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))
    shape = (kernels, channels) if draw(st.booleans()) else (batch, kernels, channels)
    k = torch.randn(shape, generator=random, dtype=torch.float64).to(dtype)
    p = torch.randn(batch, number, channels, generator=random, dtype=torch.float64).to(dtype)
    if number > 3:
        p[:, 2] = p[:, 1]
        p[:, 3, 0] = draw(st.sampled_from([torch.nan, torch.inf, 0.0]))
    count = None
    if draw(st.booleans()):
        count = torch.randint(0, number + 1, (batch,), generator=random)
        count = count.to(draw(st.sampled_from([torch.int32, torch.int64])))
    if draw(st.booleans()):
        k, p = scattered(k), scattered(p)
    return k, p, count, random


@needs_extension
@given(cases())
def test_forward_and_backward_equal_the_reference(case):
    kernels, prompts, count, random = case
    kernels.requires_grad_()
    prompts.requires_grad_()
    got, index = match_prompts(kernels, prompts, count)
    expected, expected_index = reference.match_prompts(kernels, prompts, count)
    assert torch.equal(index, expected_index)
    assert_near(got, expected)
    assert not index.requires_grad
    grad = torch.randn(got.shape, generator=random, dtype=torch.float64).to(got.dtype)
    got_grads, expected_grads = (
        torch.autograd.grad(y, (kernels, prompts), grad, allow_unused=True) for y in (got, expected)
    )
    tolerance = TOLERANCE[kernels.dtype] * 16  # the reference sums in the dtype of the inputs
    for mine, theirs, of in zip(got_grads, expected_grads, (kernels, prompts), strict=True):
        torch.testing.assert_close(
            mine, torch.zeros_like(of) if theirs is None else theirs, rtol=tolerance, atol=tolerance
        )


def test_takes_the_largest_cosine():
    kernels, prompts = torch.randn(50, 16), torch.randn(3, 9, 16)
    decorated, index = match_prompts(kernels, prompts)
    cosine = F.cosine_similarity(kernels[None, :, None], prompts[:, None], dim=-1)
    assert torch.equal(index, cosine.argmax(-1))
    assert torch.equal(decorated, kernels + prompts.gather(1, index[..., None].expand(-1, -1, 16)))


def test_ties_go_to_the_lowest_index():
    prompts = torch.randn(1, 1, 37).expand(1, 23, 37)
    _, index = match_prompts(torch.randn(11, 37), prompts)
    assert set(index.flatten().tolist()) == {0}


def test_nan_and_padding_are_never_chosen():
    prompts = torch.tensor([[[torch.nan, 1.0], [-1.0, -1.0], [1.0, 1.0]]])
    kernels = torch.ones(2, 2)
    assert match_prompts(kernels, prompts)[1].tolist() == [[2, 2]]
    assert match_prompts(kernels, prompts, torch.tensor([2]))[1].tolist() == [[1, 1]]
    decorated, index = match_prompts(kernels, prompts, torch.tensor([1]))
    assert index.tolist() == [[-1, -1]]
    assert torch.equal(decorated[0], kernels)


def test_does_not_depend_on_threads(threads):
    kernels, prompts = torch.randn(300, 128), torch.randn(3, 40, 128, requires_grad=True)
    grad = torch.randn(3, 300, 128)
    results = []
    for number in (1, 2, 3):
        threads(number)
        decorated, index = match_prompts(kernels, prompts)
        results.append((decorated.detach(), index, *torch.autograd.grad(decorated, prompts, grad)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("shape", [(5, 3), (2, 5, 3)])
def test_gradcheck(shape):
    kernels = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    prompts = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    count = torch.tensor([4, 0])
    assert torch.autograd.gradcheck(lambda k, p: match_prompts(k, p, count)[0], (kernels, prompts))
    assert torch.autograd.gradgradcheck(lambda k, p: match_prompts(k, p, count)[0], (kernels, prompts))


K = torch.randn(5, 3)
P = torch.randn(2, 4, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: match_prompts(K, P[0]), ValueError, r"prompts: expected shape \[B, L, C\], got \[4, 3\]"),
        (lambda: match_prompts(K[:, :2], P), ValueError, r"kernels: expected shape \[N, 3\], got \[5, 2\]"),
        (lambda: match_prompts(K.expand(3, 5, 3), P), ValueError, r"kernels: expected shape \[2, N, 3\]"),
        (lambda: match_prompts(K.long(), P), TypeError, "kernels: expected dtype"),
        (lambda: match_prompts(None, P), TypeError, "kernels: expected a tensor, got NoneType"),
        (
            lambda: match_prompts(K.half(), P),
            TypeError,
            "kernels: expected the dtype of prompts, float32, got float16",
        ),
        (lambda: match_prompts(K, P, torch.tensor([5, 0])), ValueError, r"count: .*\[0, 4\], got 5"),
        (lambda: match_prompts(K, P, torch.tensor([[1], [2]])), ValueError, r"count: expected shape \[2\]"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


@needs_extension
@pytest.mark.parametrize("kernels", [K, K.expand(2, 5, 3).contiguous()])
def test_opcheck(kernels):
    kernels, prompts = kernels.clone().requires_grad_(), P.clone().requires_grad_()
    torch.library.opcheck(torch.ops.sp_fast.match_prompts.default, (kernels, prompts, torch.tensor([4, 1])))


@needs_extension
@pytest.mark.parametrize(("sum_kernels", "sum_prompts"), [(True, True), (True, False), (False, True)])
def test_opcheck_of_the_backward_pass(sum_kernels, sum_prompts):
    grad = torch.randn(2, 5, 3, requires_grad=True)
    index = torch.randint(-1, 4, (2, 5))
    op = torch.ops.sp_fast.match_prompts_backward.default
    torch.library.opcheck(op, (grad, index, 4, sum_kernels, sum_prompts))
    got = op(grad, index, 4, sum_kernels, sum_prompts)
    expected = gradients.match_prompts_backward(grad, index, 4, sum_kernels, sum_prompts)
    torch.testing.assert_close(got, expected)
