"""Kernel supervision loss."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from sp_fast.ops import kernel_supervision_loss, reference
from tests.ops.op_cases import SEEDS, TOLERANCE, generator, needs_extension, scattered


@st.composite
def cases(draw):
    stages, batch = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    number, proposals = draw(st.integers(0, 6)), draw(st.integers(0, 5))
    channels = draw(st.integers(1, 40))
    random = generator(draw(SEEDS))
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))
    kernels = torch.randn(stages, batch, number, channels, generator=random, dtype=torch.float64).to(dtype)
    targets = torch.randn(batch, proposals, channels, generator=random, dtype=torch.float64).to(dtype)
    index = torch.randint(-1, max(number, 0), (stages, batch, proposals), generator=random)
    index = index.to(draw(st.sampled_from([torch.int32, torch.int64])))
    if draw(st.booleans()):
        # Unmatched kernels and targets may hold any value.
        targets[(index < 0).all(0)] = torch.nan
        reached = torch.zeros(stages, batch, number + 1, dtype=torch.bool)
        reached.scatter_(2, index.long() % (number + 1), True)
        kernels[~reached[..., :number]] = torch.inf
    if draw(st.booleans()):
        kernels, targets, index = scattered(kernels), scattered(targets), scattered(index)
    return kernels.requires_grad_(), targets.requires_grad_(), index


@given(cases(), st.sampled_from(["mean", "sum"]))
def test_forward_and_backward_equal_the_reference(case, reduction):
    kernels, targets, index = case
    got = kernel_supervision_loss(kernels, targets, index, reduction=reduction)
    expected = reference.kernel_supervision_loss(kernels, targets, index, reduction=reduction)
    assert got.dtype == (torch.float64 if kernels.dtype == torch.float64 else torch.float32)
    exact = torch.float64 if kernels.dtype == torch.float64 else torch.float32
    torch.testing.assert_close(got, expected, rtol=TOLERANCE[exact] * 4, atol=TOLERANCE[exact] * 4)
    mine, theirs = (torch.autograd.grad(loss, (kernels, targets)) for loss in (got, expected))
    tolerance = TOLERANCE[kernels.dtype] * 16  # the reference sums in the dtype of the inputs
    for vectors, a, b in zip((kernels, targets), mine, theirs, strict=True):
        # Gradients, and how far rounding moves them, grow as 1 / norm.
        norm = vectors.detach().double().norm(dim=-1, keepdim=True).nan_to_num(1.0, 1.0).clamp(min=1e-8)
        torch.testing.assert_close(a * norm, b * norm, rtol=tolerance, atol=tolerance)


def test_is_one_minus_cosine():
    kernels, targets = torch.randn(3, 2, 7, 16), torch.randn(2, 4, 16)
    index = torch.stack([torch.randperm(7)[:4] for _ in range(6)]).view(3, 2, 4)
    chosen = kernels.gather(2, index[..., None].expand(-1, -1, -1, 16))
    loss = 1 - F.cosine_similarity(chosen, targets, dim=-1)
    torch.testing.assert_close(kernel_supervision_loss(kernels, targets, index, reduction="sum"), loss.sum())
    index[1, 0] = -1
    index[2] = -1
    expected = loss[0].mean() + loss[1, 1].mean()
    torch.testing.assert_close(kernel_supervision_loss(kernels, targets, index), expected)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("shape", "proposals"),
    [((3, 2, 5, 4), 3), ((3, 2, 5, 4), 0), ((0, 2, 5, 4), 3), ((3, 0, 5, 4), 3), ((3, 2, 0, 4), 3)],
)
def test_without_pairs_loss_and_gradients_are_zero(shape, proposals, reduction):
    kernels = torch.full(shape, torch.nan, requires_grad=True)
    targets = torch.full((shape[1], proposals, shape[3]), torch.inf, requires_grad=True)
    index = torch.full((*shape[:2], proposals), -1)
    loss = kernel_supervision_loss(kernels, targets, index, reduction=reduction)
    assert loss.item() == 0
    loss.backward()
    assert (kernels.grad == 0).all()
    assert (targets.grad == 0).all()


def test_does_not_depend_on_threads(threads):
    kernels = torch.randn(3, 9, 20, 64, requires_grad=True)
    targets = torch.randn(9, 30, 64, requires_grad=True)
    index = torch.randint(-1, 20, (3, 9, 30))
    results = []
    for number in (1, 2, 3):
        threads(number)
        loss = kernel_supervision_loss(kernels, targets, index)
        results.append((loss.detach(), *torch.autograd.grad(loss, (kernels, targets))))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradcheck(reduction):
    kernels = torch.randn(2, 2, 4, 3, dtype=torch.float64, requires_grad=True)
    targets = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    index = torch.tensor([[[0, 0, -1], [3, 1, 2]], [[-1, -1, -1], [1, 2, 3]]])
    assert torch.autograd.gradcheck(
        lambda k, t: kernel_supervision_loss(k, t, index, reduction=reduction), (kernels, targets)
    )


K = torch.randn(2, 2, 4, 3)
T = torch.randn(2, 3, 3)
I = torch.zeros(2, 2, 3, dtype=torch.int64)  # noqa: E741


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: kernel_supervision_loss(K[0], T, I), ValueError, r"kernels: expected shape \[S, B, N, C\]"),
        (lambda: kernel_supervision_loss(K, T[:1], I), ValueError, r"targets: expected shape \[2, L, 3\]"),
        (
            lambda: kernel_supervision_loss(K, T.half(), I),
            TypeError,
            "targets: expected the dtype of kernels, float32",
        ),
        (lambda: kernel_supervision_loss(K, T, I[:1]), ValueError, r"index: expected shape \[2, 2, 3\]"),
        (lambda: kernel_supervision_loss(K, T, I.float()), TypeError, "index: expected dtype int64 or int32"),
        (lambda: kernel_supervision_loss(K, T, I + 4), ValueError, r"index: .*\[-1, 3\], got 4"),
        (lambda: kernel_supervision_loss(K, T, I - 2), ValueError, r"index: .*\[-1, 3\], got -2"),
        (
            lambda: kernel_supervision_loss(K, T, I, reduction="none"),
            ValueError,
            "reduction: expected one of",
        ),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


@needs_extension
@pytest.mark.parametrize("mean", [True, False])
def test_opcheck(mean):
    kernels, targets = K.clone().requires_grad_(), T.clone().requires_grad_()
    torch.library.opcheck(torch.ops.sp_fast.kernel_supervision_loss.default, (kernels, targets, I, mean))
    torch.library.opcheck(
        torch.ops.sp_fast.kernel_supervision_loss_backward.default, (torch.ones(()), K, T, I, mean)
    )
