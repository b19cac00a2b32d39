"""Sums of upsampled masks and the focal loss of class maps, in Triton, against the reference in fp64."""

import pytest
import torch

from sp_fast.ops import mask_sums_reference as reference
from tests.kernels.kernel_cases import DTYPES, TOLERANCE, integers, normal, same_bits, scattered

FLOAT, HALF, BFLOAT = DTYPES
# Images, masks or classes, targets, height, width, dtype: blocks that end in the middle, one cell, several
# ranges of cells, several blocks of masks and of targets, half precision.
SIZES = [
    (2, 3, 2, 5, 7, FLOAT),
    (1, 1, 1, 1, 1, FLOAT),
    (1, 17, 3, 1, 40, FLOAT),
    (1, 2, 66, 3, 2, FLOAT),
    (2, 2, 2, 23, 40, FLOAT),
    (1, 3, 2, 6, 5, HALF),
    (1, 3, 2, 6, 5, BFLOAT),
]


def inputs(size, device):
    batch, number, targets, height, width, dtype = size
    logits = normal(batch, number, height, width, seed=0, device=device) * 4
    quarters = integers(0, 5, (batch, targets, 2 * height, 2 * width), seed=1, device=device)
    return logits.to(dtype), quarters.to(torch.uint8)


def assert_sums(got, expected):
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one.double(), other, rtol=4e-6, atol=4e-6)


@pytest.mark.parametrize("size", SIZES)
def test_overlaps(kernels, device, size):
    logits, masks = inputs(size, device)
    expected = reference.mask_overlaps(logits.double(), masks)
    assert_sums(kernels.mask_overlaps(logits, masks), expected)
    assert_sums(kernels.mask_overlaps(logits, masks / 4), expected)


@pytest.mark.parametrize("shape", [(0, 2, 2), (2, 0, 2), (2, 2, 0)])
def test_overlaps_without_images_masks_or_targets(kernels, device, shape):
    logits, masks = inputs((*shape, 2, 3, FLOAT), device)
    assert_sums(kernels.mask_overlaps(logits, masks), reference.mask_overlaps(logits.double(), masks))


@pytest.mark.parametrize("size", SIZES)
def test_pair_sums(kernels, device, size):
    logits, masks = (x.flatten(0, 1) for x in inputs(size, device))
    row = integers(0, len(masks), (len(logits),), seed=2, device=device)
    exact = logits.double().requires_grad_()
    expected = reference.mask_pair_sums(exact, masks, row)
    assert_sums(kernels.mask_pair_sums(logits, masks, row), [x.detach() for x in expected])
    grads = [normal(len(logits), seed=3 + i, device=device) for i in range(3)]
    (wanted,) = torch.autograd.grad(expected[:3], exact, [g.double() for g in grads])
    got = kernels.mask_pair_sums_backward(*grads, logits, masks, row.int())
    assert got.dtype == logits.dtype
    tolerance = TOLERANCE[logits.dtype] * 4
    torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("size", SIZES)
def test_focal_loss(kernels, device, size):
    logits, _ = inputs(size, device)
    batch, classes, height, width = logits.shape
    labels = integers(-1, classes + 2, (batch, 2 * height, 2 * width), seed=1, device=device)
    exact = logits.double().requires_grad_()
    expected = reference.upsampled_focal_loss(exact, labels, 0.25)
    assert_sums([kernels.upsampled_focal_loss(logits, labels, 0.25)], [expected.detach()])
    grad = torch.tensor(1.5, device=device)
    (wanted,) = torch.autograd.grad(expected, exact, grad.double())
    got = kernels.upsampled_focal_loss_backward(grad, logits, labels.int(), 0.25)
    assert got.dtype == logits.dtype
    tolerance = TOLERANCE[logits.dtype] * 4
    torch.testing.assert_close(got.double(), wanted, rtol=tolerance, atol=tolerance)


def test_without_pairs_or_classes(kernels, device):
    logits, masks = torch.empty(0, 2, 3, device=device), torch.empty(0, 4, 6, device=device)
    row, none = torch.empty(0, dtype=torch.int64, device=device), torch.empty(0, device=device)
    assert [len(x) for x in kernels.mask_pair_sums(logits, masks, row)] == [0] * 4
    assert kernels.mask_pair_sums_backward(none, none, none, logits, masks, row).shape == logits.shape
    labels = torch.zeros(1, 4, 6, dtype=torch.int64, device=device)
    assert kernels.upsampled_focal_loss(logits[None], labels, 0.25).item() == 0


def test_rows_are_clamped(kernels, device):
    logits, masks = (x[0] for x in inputs((1, 4, 2, 3, 4, FLOAT), device))
    row = torch.tensor([-7, 1, 2, 2**40], device=device)
    expected = reference.mask_pair_sums(logits.double(), masks, row.clamp(0, 1))
    assert_sums(kernels.mask_pair_sums(logits, masks, row), expected)


def test_any_strides(kernels, device):
    logits, masks = inputs(SIZES[0], device)
    loose = scattered(logits), scattered(masks)
    for got, expected in zip(
        kernels.mask_overlaps(*loose), kernels.mask_overlaps(logits, masks), strict=True
    ):
        assert same_bits(got, expected)
