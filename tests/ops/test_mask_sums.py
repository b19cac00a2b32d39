"""Sums of upsampled masks and targets, and the focal loss of upsampled class maps."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from sp_fast.ops import focal_loss, mask_overlaps, mask_pair_sums, mask_sums, upsampled_focal_loss
from sp_fast.ops import mask_sums_reference as reference
from tests.ops.op_cases import SEEDS, TOLERANCE, generator, needs_extension, scattered

DTYPES = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])


def logits_of(draw, *leading):
    """Logits of all magnitudes, and their generator."""
    height, width = draw(st.integers(1, 6)), draw(st.sampled_from([1, 2, 3, 8, 37]))
    random = generator(draw(SEEDS))
    logits = torch.randn(*leading, height, width, generator=random, dtype=torch.float64)
    return (logits * draw(st.sampled_from([0.1, 3.0, 200.0]))).to(draw(DTYPES)), random


def masks_of(draw, logits, random, *leading):
    """Targets for the logits, some of them empty or a rectangle."""
    height, width = (2 * size for size in logits.shape[-2:])
    quarters = torch.randint(0, 5, (*leading, height, width), generator=random, dtype=torch.uint8)
    quarters[..., : draw(st.integers(0, height)), :] = 0
    quarters[..., draw(st.integers(0, width)) :] = 0
    kind = draw(st.sampled_from([torch.uint8, torch.float32, logits.dtype]))
    return quarters if kind == torch.uint8 else (quarters / 4).to(kind)


@st.composite
def image_cases(draw):
    batch, number, targets = draw(st.integers(0, 3)), draw(st.integers(0, 5)), draw(st.integers(0, 4))
    logits, random = logits_of(draw, batch, number)
    case = logits, masks_of(draw, logits, random, batch, targets)
    return tuple(map(scattered, case)) if draw(st.booleans()) else case


@st.composite
def pair_cases(draw):
    pairs, rows = draw(st.integers(0, 5)), draw(st.integers(1, 4))
    logits, random = logits_of(draw, pairs)
    masks = masks_of(draw, logits, random, rows)
    row = torch.randint(0, rows, (pairs,), generator=random).to(
        draw(st.sampled_from([torch.int32, torch.int64]))
    )
    case = logits, masks, row
    logits, masks, row = map(scattered, case) if draw(st.booleans()) else case
    return logits.requires_grad_(), masks, row


@st.composite
def class_cases(draw):
    batch, classes = draw(st.integers(0, 3)), draw(st.integers(0, 6))
    logits, random = logits_of(draw, batch, classes)
    shape = (batch, *(2 * size for size in logits.shape[-2:]))
    labels = torch.randint(-1, classes + 2, shape, generator=random)
    labels = labels.to(draw(st.sampled_from([torch.int32, torch.int64])))
    case = (logits, labels)
    logits, labels = map(scattered, case) if draw(st.booleans()) else case
    return logits.requires_grad_(), labels


def assert_sums(got, expected, exact):
    """Sums of the op and of the reference in fp64."""
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == exact
        assert one.shape == other.shape
        torch.testing.assert_close(one.double(), other, rtol=TOLERANCE[exact] * 4, atol=TOLERANCE[exact] * 4)


def assert_gradient(got, expected, dtype):
    assert got.dtype == dtype
    tolerance = TOLERANCE[dtype] * 4
    torch.testing.assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


def accumulated(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


@given(image_cases())
def test_overlaps_equal_the_reference(case):
    logits, masks = case
    assert_sums(
        mask_overlaps(logits, masks),
        reference.mask_overlaps(logits.double(), masks),
        accumulated(logits.dtype),
    )


@given(pair_cases())
def test_pair_sums_and_their_gradient_equal_the_reference(case):
    logits, masks, row = case
    got = mask_pair_sums(logits, masks, row)
    exact = logits.detach().double().requires_grad_()
    expected = reference.mask_pair_sums(exact, masks, row)
    assert_sums([x.detach() for x in got], [x.detach() for x in expected], accumulated(logits.dtype))
    weights = torch.tensor([0.5, -1.5, 0.25], dtype=torch.float64)
    mine, theirs = (
        sum((weight.to(x.dtype) * x).sum() for weight, x in zip(weights, sums[:3], strict=True))
        for sums in (got, expected)
    )
    assert not got.target_squares.requires_grad
    assert_gradient(torch.autograd.grad(mine, logits)[0], torch.autograd.grad(theirs, exact)[0], logits.dtype)


@given(class_cases(), st.sampled_from([0.25, 0.0, 1.0]))
def test_focal_loss_and_its_gradient_equal_the_reference(case, alpha):
    logits, labels = case
    got = upsampled_focal_loss(logits, labels, alpha=alpha)
    exact = logits.detach().double().requires_grad_()
    expected = reference.upsampled_focal_loss(exact, labels, alpha)
    assert_sums([got.detach()], [expected.detach()], accumulated(logits.dtype))
    assert_gradient(
        torch.autograd.grad(got, logits)[0], torch.autograd.grad(expected, exact)[0], logits.dtype
    )


def test_gradcheck():
    logits = (3 * torch.randn(3, 3, 4, dtype=torch.float64)).requires_grad_()
    masks, row = torch.rand(2, 6, 8, dtype=torch.float64), torch.tensor([1, 0, 1])
    assert torch.autograd.gradcheck(lambda x: mask_pair_sums(x, masks, row)[:3], logits)
    labels = torch.randint(0, 4, (1, 6, 8))
    assert torch.autograd.gradcheck(lambda x: upsampled_focal_loss(x[None], labels), logits)


@given(pair_cases(), class_cases(), st.sampled_from([0.25, 0.0, 1.0]))
def test_gradients_of_the_reference_without_autograd(pairs, classes, alpha):
    """GPUs without Triton, and fp64 on any, get them below autograd."""
    logits, masks, row = pairs
    maps, labels = classes
    exact = [x.detach().double().requires_grad_() for x in (logits, maps)]
    sums = reference.mask_pair_sums(exact[0], masks, row)
    grads = [torch.linspace(a, b, len(row), dtype=torch.float64) for a, b in ((1, 2), (-1, 3), (2, -1))]
    loss = reference.upsampled_focal_loss(exact[1], labels, alpha)
    expected = [
        *torch.autograd.grad(sums[:3], exact[0], grads),
        *torch.autograd.grad(loss, exact[1], torch.tensor(1.5, dtype=torch.float64)),
    ]
    with torch._C._AutoDispatchBelowAutograd():
        found = [
            reference.mask_pair_sums_backward(*grads, logits.detach(), masks, row),
            reference.upsampled_focal_loss_backward(torch.tensor(1.5), maps.detach(), labels, alpha),
        ]
    for got, other, of in zip(found, expected, (logits, maps), strict=True):
        assert_gradient(got, other, of.dtype)


def test_autocast_does_not_round_the_sums_of_the_reference():
    logits, masks = torch.randn(2, 3, 4, 5), torch.rand(2, 2, 8, 10)
    with torch.autocast("cpu", torch.bfloat16):
        found = reference.mask_overlaps(logits, masks)
    for got, expected in zip(found, reference.mask_overlaps(logits, masks), strict=True):
        torch.testing.assert_close(got, expected)


def test_definitions_follow_the_equations():
    # In fp64: in fp32, 1 - p near p = 1 is only known to a few digits.
    logits = 3 * torch.randn(2, 3, 4, 5, dtype=torch.float64)
    masks = torch.rand(2, 2, 8, 10, dtype=torch.float64)
    x = F.interpolate(logits, scale_factor=2, mode="bilinear", align_corners=False)
    p = x.sigmoid()
    sums = mask_overlaps(logits, masks)
    torch.testing.assert_close(sums.overlap, torch.einsum("bnhw,bghw->bng", p, masks))
    torch.testing.assert_close(sums.area, p.sum((-2, -1)))
    torch.testing.assert_close(sums.squares, p.square().sum((-2, -1)))
    torch.testing.assert_close(sums.target_area, masks.sum((-2, -1)))
    torch.testing.assert_close(sums.target_squares, masks.square().sum((-2, -1)))
    pairs = mask_pair_sums(logits[0], masks[1], torch.tensor([1, 1, 0]))
    g = masks[1, [1, 1, 0]]
    entropy = -(g * p[0].log() + (1 - g) * (1 - p[0]).log()).sum((-2, -1))
    torch.testing.assert_close(pairs.cross_entropy, entropy)
    torch.testing.assert_close(pairs.overlap, (p[0] * g).sum((-2, -1)))
    labels = torch.randint(0, 4, (2, 8, 10))
    loss = 0.0
    for k in range(3):
        of, q = labels == k, p[:, k]
        loss += torch.where(of, -0.3 * (1 - q) ** 2 * q.log(), -0.7 * q**2 * (1 - q).log()).sum()
    torch.testing.assert_close(upsampled_focal_loss(logits, labels, alpha=0.3), loss)


def test_quarters_equal_fractions():
    logits, quarters = torch.randn(2, 3, 4, 5), torch.randint(0, 5, (2, 2, 8, 10), dtype=torch.uint8)
    for got, expected in zip(
        mask_overlaps(logits, quarters), mask_overlaps(logits, quarters / 4), strict=True
    ):
        assert torch.equal(got, expected)


@needs_extension  # PyTorch's cross-entropy loses them
def test_small_probabilities_are_not_lost():
    logits = torch.full((1, 2, 3), -30.0)
    entropy = mask_pair_sums(logits, torch.zeros(1, 4, 6), torch.tensor([0])).cross_entropy
    torch.testing.assert_close(entropy, 24 * logits[0, 0, :1].exp(), rtol=1e-5, atol=0)


@needs_extension  # PyTorch's interpolation makes a NaN of infinity at the border
def test_nan_and_infinity_are_kept():
    logits = torch.zeros(1, 4, 3, 3)
    logits[0, 1, 1, 1], logits[0, 2], logits[0, 3] = torch.nan, torch.inf, -torch.inf
    area = mask_overlaps(logits, torch.ones(1, 1, 6, 6)).area[0]
    torch.testing.assert_close(area, torch.tensor([18, torch.nan, 36, 0]), equal_nan=True)


def test_does_not_depend_on_threads(threads):
    logits, masks = torch.randn(3, 9, 7, 33), torch.rand(3, 5, 14, 66)
    pairs, row = logits.flatten(0, 1).requires_grad_(), torch.arange(27) % 15
    labels = torch.randint(0, 10, (3, 14, 66))
    found = []
    for number in (1, 2, 3):
        threads(number)
        sums = mask_pair_sums(pairs, masks.flatten(0, 1), row)
        loss = upsampled_focal_loss(pairs.view(3, 9, 7, 33), labels)
        total = sums.cross_entropy.sum() + sums.squares.sum() + loss
        found.append((*mask_overlaps(logits, masks), *sums, loss, *torch.autograd.grad(total, pairs)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


X, M, R = torch.randn(2, 3, 4, 5), torch.rand(2, 2, 8, 10), torch.tensor([0, 1])
L, G = torch.zeros(2, 8, 10, dtype=torch.int64), torch.ones(2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mask_overlaps(X[0], M), ValueError, r"logits: expected shape \[B, N, h, w\]"),
        (lambda: mask_overlaps(X[..., :0], M), ValueError, "logits: expected height and width of at least 1"),
        (lambda: mask_overlaps(X, M[:1]), ValueError, r"masks: expected shape \[2, G, 8, 10\]"),
        (lambda: mask_overlaps(X, M > 0), TypeError, "masks: expected dtype"),
        (lambda: mask_overlaps(X.long(), M), TypeError, "logits: expected dtype"),
        (lambda: mask_pair_sums(X[0], M[0], R), ValueError, r"row: expected shape \[3\]"),
        (lambda: mask_pair_sums(X[0, :2], M[0], R + 1), ValueError, r"row: .*\[0, 1\], got 2"),
        (lambda: mask_pair_sums(X[0, :2], M[0], -R), ValueError, r"row: .*\[0, 1\], got -1"),
        (lambda: mask_pair_sums(X[0, :2], M[0, :0], R), ValueError, "masks: expected at least one target"),
        (lambda: mask_pair_sums(X[0, :2], M[0, 0], R), ValueError, r"masks: expected shape \[R, 8, 10\]"),
        (lambda: upsampled_focal_loss(X, L[0]), ValueError, r"labels: expected shape \[2, 8, 10\]"),
        (lambda: upsampled_focal_loss(X, L.float()), TypeError, "labels: expected dtype int64 or int32"),
        (lambda: upsampled_focal_loss(X, L, alpha=2), ValueError, r"alpha: expected a number in \[0, 1\]"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


@needs_extension
def test_the_compiled_ops_refuse_maps_without_cells():
    ops, x, masks = torch.ops.sp_fast, X[..., :0], M[..., :0]
    for call in (
        lambda: ops.mask_overlaps(x, masks),
        lambda: ops.mask_pair_sums(x[0, :2], masks[0], R),
        lambda: ops.upsampled_focal_loss(x, L[..., :0], 0.25),
    ):
        with pytest.raises(ValueError, match="logits: expected height and width of at least 1"):
            call()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((G, G[:1], G, X[0, :2], M[0], R), ValueError, r"grad_overlap: expected shape \[2\], got \[1\]"),
        ((G, G, G.long(), X[0, :2], M[0], R), TypeError, "grad_squares: expected dtype"),
        ((G, G, G, X[0, :2], M[0], R[:1]), ValueError, "row: expected shape"),
        ((G, G, G, X[0, :2], M[0][..., :1], R), ValueError, "masks: expected shape"),
    ],
)
def test_errors_of_the_backward_pass_on_a_gpu(arguments, error, message):
    """The checks that stand before the Triton kernel, as those of C++ do on the CPU."""
    with pytest.raises(error, match=message):
        mask_sums._pairs_backward_on_gpu(*arguments)


def test_errors_of_the_backward_pass_of_the_focal_loss_on_a_gpu():
    with pytest.raises(ValueError, match=r"grad: expected shape \[\], got \[2\]"):
        focal_loss._backward_on_gpu(G, X, L, 0.25)
    with pytest.raises(ValueError, match="labels: expected shape"):
        focal_loss._backward_on_gpu(torch.ones(()), X, L[..., :1], 0.25)


@needs_extension
def test_opcheck():
    ops = torch.ops.sp_fast
    pairs = X[0, :2].clone().requires_grad_()
    torch.library.opcheck(ops.mask_overlaps.default, (X, M))
    torch.library.opcheck(ops.mask_pair_sums.default, (pairs, M[0], R))
    ones = torch.ones(2)
    torch.library.opcheck(ops.mask_pair_sums_backward.default, (ones, ones, ones, pairs.detach(), M[0], R))
    torch.library.opcheck(ops.upsampled_focal_loss.default, (X.clone().requires_grad_(), L, 0.25))
    torch.library.opcheck(ops.upsampled_focal_loss_backward.default, (torch.ones(()), X, L, 0.25))
