"""RoI average pooling, forward and backward."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import roi_align

from sp_fast.ops import reference, roi_average_pool
from tests.ops.op_cases import SEEDS, TOLERANCE, assert_near, generator, needs_extension, scattered


@st.composite
def cases(draw):
    batch, channels, number = draw(st.integers(0, 3)), draw(st.integers(0, 4)), draw(st.integers(0, 7))
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 40))
    random = generator(draw(SEEDS))
    dtype = draw(st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]))
    features = torch.rand(batch, channels, height, width, generator=random, dtype=torch.float64).to(dtype)
    boxes = (torch.rand(batch, number, 4, generator=random) * 1.4 - 0.2) * torch.tensor([width, height] * 2)
    if draw(st.booleans()):
        boxes = boxes.round()
    strange = torch.tensor([torch.nan, torch.inf, -torch.inf, -3.0, 1e9, 0.0])
    where = torch.rand(boxes.shape, generator=random) < draw(st.sampled_from([0.0, 0.2]))
    boxes = torch.where(where, strange[torch.randint(6, boxes.shape, generator=random)], boxes)
    count = None
    if draw(st.booleans()):
        count = torch.randint(0, number + 1, (batch,), generator=random)
        count = count.to(draw(st.sampled_from([torch.int32, torch.int64])))
    if draw(st.booleans()):
        features, boxes = scattered(features), scattered(boxes)
    return features, boxes, count, random


@given(cases())
def test_forward_and_backward_equal_the_reference(case):
    features, boxes, count, random = case
    features.requires_grad_()
    got, expected = (op(features, boxes, count) for op in (roi_average_pool, reference.roi_average_pool))
    assert_near(got, expected)
    grad = torch.rand(got.shape, generator=random, dtype=torch.float64).to(got.dtype)
    got, expected = (torch.autograd.grad(y, features, grad)[0] for y in (got, expected))
    # The reference rounds the gradient of every box, the op their sum.
    tolerance = TOLERANCE[features.dtype] * 4
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@given(cases())
def test_nan_outside_a_box_does_not_reach_it(case):
    features, boxes, count, _ = case
    if features.numel() == 0 or boxes.numel() == 0:
        return
    features[..., 0, 0] = torch.nan
    features[..., -1, -1] = torch.inf
    assert_near(roi_average_pool(features, boxes, count), reference.roi_average_pool(features, boxes, count))


def test_equals_exact_roi_align_on_whole_cells():
    features = torch.randn(2, 3, 17, 23, dtype=torch.float64)
    low = torch.stack([torch.randint(0, 20, (2, 9)), torch.randint(0, 14, (2, 9))], -1)
    size = torch.stack([torch.randint(1, 4, (2, 9)), torch.randint(1, 4, (2, 9))], -1)
    boxes = torch.cat([low, low + size], -1).double()
    expected = roi_align(features, list(boxes), 1, sampling_ratio=-1, aligned=True)
    assert_near(roi_average_pool(features, boxes), expected.view(2, 9, 3))


@pytest.mark.parametrize(
    ("box", "rows", "columns"),
    [
        ([1.2, 0.0, 3.1, 2.0], slice(0, 2), slice(1, 4)),
        ([2.0, 2.0, 2.0, 2.0], slice(2, 3), slice(2, 3)),
        ([4.5, 1.0, 2.0, 3.0], slice(1, 3), slice(4, 5)),
        ([-9.0, -9.0, 99.0, 99.0], slice(0, 4), slice(0, 6)),
        ([50.0, 50.0, 60.0, 60.0], slice(3, 4), slice(5, 6)),
        ([-5.0, -5.0, -2.0, -2.0], slice(0, 1), slice(0, 1)),
        ([torch.nan, 1.0, torch.inf, torch.nan], slice(1, 2), slice(0, 6)),
    ],
)
def test_cells_of_a_box(box, rows, columns):
    features = torch.randn(1, 2, 4, 6)
    got = roi_average_pool(features, torch.tensor([[box]]))
    assert_near(got[0, 0], features[0, :, rows, columns].mean((1, 2)))


def test_rows_from_count_on_are_zero_and_have_no_gradient():
    features = torch.randn(2, 3, 5, 6, requires_grad=True)
    boxes = torch.tensor([0.0, 0.0, 6.0, 5.0]).expand(2, 4, 4)
    pooled = roi_average_pool(features, boxes, torch.tensor([0, 3]))
    assert (pooled[0] == 0).all()
    assert (pooled[1, 3:] == 0).all()
    assert (pooled[1, :3] != 0).all()
    pooled.sum().backward()
    assert (features.grad[0] == 0).all()
    assert_near(features.grad[1], torch.full((3, 5, 6), 3 / 30))


def test_does_not_depend_on_threads(threads):
    features = torch.randn(2, 7, 40, 60, requires_grad=True)
    boxes = torch.rand(2, 30, 4) * torch.tensor([30.0, 20, 60, 40])
    grad = torch.randn(2, 30, 7)
    results = []
    for number in (1, 2, 3):
        threads(number)
        pooled = roi_average_pool(features, boxes)
        results.append((pooled.detach(), *torch.autograd.grad(pooled, features, grad)))
    for other in results[1:]:
        assert torch.equal(results[0][0], other[0])
        assert torch.equal(results[0][1], other[1])


def test_gradcheck():
    features = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor(
        [[[0, 0, 3, 2], [1.5, 1, 4.2, 4], [9, 9, 9, 9]], [[0, 0, 5, 4], [2, 2, 3, 3], [0, 0, 1, 1]]]
    )
    count = torch.tensor([3, 2])
    assert torch.autograd.gradcheck(lambda x: roi_average_pool(x, boxes, count), features)
    assert torch.autograd.gradgradcheck(lambda x: roi_average_pool(x, boxes, count), features)


X = torch.randn(2, 3, 4, 5)
BOXES = torch.rand(2, 6, 4)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: roi_average_pool(X[0], BOXES), ValueError, r"features: expected shape \[B, C, H, W\]"),
        (lambda: roi_average_pool(X.int(), BOXES), TypeError, "features: expected dtype.*got int32"),
        (lambda: roi_average_pool(X[:, :, :0], BOXES), ValueError, "features: expected height and width"),
        (
            lambda: roi_average_pool(X, BOXES[:1]),
            ValueError,
            r"boxes: expected shape \[2, L, 4\], got \[1, 6, 4\]",
        ),
        (lambda: roi_average_pool(X, BOXES.long()), TypeError, "boxes: expected dtype.*got int64"),
        (lambda: roi_average_pool(X, list(BOXES)), TypeError, "boxes: expected a tensor, got list"),
        (lambda: roi_average_pool(X, BOXES.to("meta")), ValueError, "boxes: expected device cpu, got meta"),
        (
            lambda: roi_average_pool(X, BOXES, torch.ones(2)),
            TypeError,
            "count: expected dtype int64 or int32",
        ),
        (lambda: roi_average_pool(X, BOXES, torch.tensor([1])), ValueError, r"count: expected shape \[2\]"),
        (lambda: roi_average_pool(X, BOXES, torch.tensor([1, 7])), ValueError, r"count: .*\[0, 6\], got 7"),
        (lambda: roi_average_pool(X, BOXES, torch.tensor([-1, 2])), ValueError, r"count: .*\[0, 6\], got -1"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


@needs_extension
@pytest.mark.parametrize("count", [None, torch.tensor([6, 2])])
def test_opcheck(count):
    features = X.clone().requires_grad_()
    torch.library.opcheck(torch.ops.sp_fast.roi_average_pool.default, (features, BOXES, count))
    grad = torch.randn(2, 6, 3, requires_grad=True)
    for channels_last in (False, True):
        torch.library.opcheck(
            torch.ops.sp_fast.roi_average_pool_backward.default, (grad, BOXES, count, 4, 5, channels_last)
        )


@needs_extension
def test_gradient_has_the_layout_of_the_features():
    for layout in (torch.contiguous_format, torch.channels_last):
        features = X.contiguous(memory_format=layout).requires_grad_()
        (grad,) = torch.autograd.grad(roi_average_pool(features, BOXES).sum(), features)
        assert grad.stride() == features.stride()
        assert_near(grad, torch.autograd.grad(reference.roi_average_pool(features, BOXES).sum(), features)[0])
