"""The kernel loss in Triton against the reference."""

import pytest
import torch

from sp_fast.ops import reference
from tests.kernels.kernel_cases import DTYPES, TOLERANCE, integers, normal, same_bits, scattered

FLOAT, HALF, BFLOAT = DTYPES
# Stages, batch, kernels, proposals, channels, dtype, mean: blocks that end in the middle, one element,
# several blocks of proposals and of stages, half precision and long vectors.
CASES = [
    (3, 2, 20, 10, 256, FLOAT, True),
    (1, 1, 333, 17, 63, FLOAT, False),
    (2, 2, 1, 1, 1, FLOAT, True),
    (1, 1, 9, 300, 33, FLOAT, True),
    (10, 2, 3, 2, 7, FLOAT, True),
    (2, 1, 3, 2, 2500, FLOAT, False),
    (2, 2, 9, 5, 300, HALF, True),
    (2, 2, 9, 5, 300, BFLOAT, False),
]


def inputs(case, device):
    stages, batch, number, proposals, channels, dtype, mean = case
    kernels = normal(stages, batch, number, channels, seed=0, dtype=dtype, device=device)
    targets = normal(batch, proposals, channels, seed=1, dtype=dtype, device=device)
    return kernels, targets, integers(-1, number, (stages, batch, proposals), seed=2, device=device), mean


def assert_equals_the_reference(kernels, updated, targets, index, mean):
    """The loss and both gradients, against what PyTorch makes of the reference in fp32."""
    exact = [x.detach().float().requires_grad_() for x in (updated, targets)]
    expected = reference.kernel_supervision_loss(*exact, index, reduction="mean" if mean else "sum")
    got = kernels.kernel_supervision_loss(updated, targets, index, mean)
    assert got.dtype == torch.float32
    assert got.shape == ()
    torch.testing.assert_close(got, expected.detach(), rtol=4e-6, atol=4e-6)
    grad = torch.tensor(1.5, device=updated.device)
    grads = kernels.kernel_supervision_loss_backward(grad, updated, targets, index, mean)
    wanted = torch.autograd.grad(expected, exact, grad)
    tolerance = TOLERANCE[updated.dtype] * 4
    for mine, theirs in zip(grads, wanted, strict=True):
        assert mine.dtype == updated.dtype
        torch.testing.assert_close(mine.float(), theirs, rtol=tolerance, atol=tolerance)
    return got, *grads


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(kernels, device, case):
    assert_equals_the_reference(kernels, *inputs(case, device))


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_strides(kernels, device, dtype):
    updated, targets, index, mean = inputs((2, 2, 5, 3, 33, dtype, True), device)
    loose = scattered(updated), scattered(targets), scattered(index.int()), mean
    got = kernels.kernel_supervision_loss(*loose)
    assert same_bits(got, kernels.kernel_supervision_loss(updated, targets, index, mean))
    grad = torch.ones((), device=device)
    got = kernels.kernel_supervision_loss_backward(grad, *loose)
    expected = kernels.kernel_supervision_loss_backward(grad, updated, targets, index, mean)
    assert all(same_bits(a, b) for a, b in zip(got, expected, strict=True))
    assert all(x.is_contiguous() for x in got)


def test_proposals_with_one_kernel_are_added(kernels, device):
    updated, targets, _, _ = inputs((2, 1, 4, 70, 8, FLOAT, True), device)
    index = torch.full((2, 1, 70), 2, device=device)
    index[1] = integers(-1, 2, (1, 70), seed=3, device=device)
    assert_equals_the_reference(kernels, updated, targets, index, True)


def test_unmatched_values_do_not_matter(kernels, device):
    updated, targets, index, mean = inputs((2, 2, 6, 5, 12, FLOAT, True), device)
    index[:, :, 3:] = -1
    index[index == 4] = 1
    clean = assert_equals_the_reference(kernels, updated, targets, index, mean)
    targets[:, 3] = torch.nan
    targets[:, 4] = torch.inf
    updated[:, :, 4] = torch.nan
    again = assert_equals_the_reference(kernels, updated, targets, index, mean)
    assert all(same_bits(a, b) for a, b in zip(clean, again, strict=True))


def test_index_is_clamped(kernels, device):
    updated, targets, index, mean = inputs((1, 2, 4, 5, 12, FLOAT, True), device)
    index[0, 0] = torch.tensor([-7, 3, 4, 99, -(2**40)], device=device)
    assert_equals_the_reference(kernels, updated, targets, index, mean)


def test_zero_vectors(kernels, device):
    updated, targets, index, mean = inputs((1, 1, 4, 5, 12, FLOAT, False), device)
    targets[0, 0] = 0
    index[0, 0] = torch.tensor([1, 0, 1, 2, 3], device=device)
    assert_equals_the_reference(kernels, updated, targets, index, mean)
    updated[0, 0, 0] = 0
    loss, of_kernels, _ = (
        kernels.kernel_supervision_loss(updated, targets, index, mean),
        *kernels.kernel_supervision_loss_backward(
            torch.ones((), device=device), updated, targets, index, mean
        ),
    )
    expected = reference.kernel_supervision_loss(updated, targets, index, reduction="sum")
    torch.testing.assert_close(loss, expected)
    # The norm is clamped to 1e-8, so the gradient is the direction of the target times 1e8.
    torch.testing.assert_close(of_kernels[0, 0, 0], -1e8 * reference._unit(targets[0, 1]))


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize(
    "size", [(3, 2, 5, 3, 4), (3, 2, 5, 0, 4), (0, 2, 5, 3, 4), (3, 0, 5, 3, 4), (3, 2, 0, 3, 4)]
)
def test_without_pairs_loss_and_gradients_are_zero(kernels, device, size, mean):
    stages, batch, number, proposals, channels = size
    updated = torch.full((stages, batch, number, channels), torch.nan, device=device)
    targets = torch.full((batch, proposals, channels), torch.inf, device=device)
    index = torch.full((stages, batch, proposals), -1, device=device)
    assert kernels.kernel_supervision_loss(updated, targets, index, mean).item() == 0
    grads = kernels.kernel_supervision_loss_backward(
        torch.ones((), device=device), updated, targets, index, mean
    )
    for grad, of in zip(grads, (updated, targets), strict=True):
        assert torch.equal(grad, torch.zeros_like(of))


def test_two_runs_give_the_same_bits(kernels, device):
    arguments = inputs((3, 2, 9, 5, 64, FLOAT, True), device)
    grad = torch.ones((), device=device)
    first, second = (
        (
            kernels.kernel_supervision_loss(*arguments),
            *kernels.kernel_supervision_loss_backward(grad, *arguments),
        )
        for _ in range(2)
    )
    assert all(same_bits(a, b) for a, b in zip(first, second, strict=True))
