"""The CUDA kernels of RoI average pooling, run on the CPU, against the reference."""

import pytest
import torch

from sp_fast.ops import reference
from tests.ops.op_cases import assert_near, generator, scattered

LAYOUTS = [torch.contiguous_format, torch.channels_last]
# Batch, channels, height, width, boxes: every number of columns per lane, several tiles of columns, several
# blocks and parts of a plane, rows of odd and even length, rows that are and are not multiples of 16 bytes.
SIZES = [
    (1, 1, 1, 1, 1),
    (2, 3, 1, 40, 5),
    (1, 5, 40, 1, 4),
    (3, 7, 5, 7, 31),
    (2, 4, 9, 64, 12),
    (1, 34, 13, 65, 8),
    (2, 3, 30, 126, 33),
    (1, 2, 61, 167, 9),
    (1, 3, 37, 334, 30),
    (1, 2, 23, 401, 70),
    (1, 1, 7, 800, 6),
    (1, 1, 211, 24, 32),
    (2, 66, 3, 5, 7),
]
# fp16 and fp64 at a few of them.
CASES = [(size, dtype) for size in SIZES for dtype in (torch.float32, torch.bfloat16)]
CASES += [(size, dtype) for size in SIZES[3:6] for dtype in (torch.float16, torch.float64)]


@pytest.fixture(scope="module")
def forward(on_cpu):
    return on_cpu("roi_average_pool").roi_average_pool


@pytest.fixture(scope="module")
def backward(on_cpu):
    return on_cpu("roi_average_pool_backward").roi_average_pool_backward


def some_boxes(batch, number, height, width, random):
    """Boxes of every kind: inside, outside, reversed, of one cell, of all cells, with NaN and infinity."""
    boxes = (torch.rand(batch, number, 4, generator=random) * 1.4 - 0.2) * torch.tensor([width, height] * 2)
    forward = boxes[..., :2].minimum(boxes[..., 2:]), boxes[..., :2].maximum(boxes[..., 2:])
    ordered = torch.rand(batch, number, 1, generator=random) < 0.8
    boxes = torch.where(ordered, torch.cat(forward, -1), boxes)
    rounded = torch.rand(batch, number, 1, generator=random) < 0.3
    boxes = torch.where(rounded, boxes.round(), boxes)
    strange = torch.tensor([torch.nan, torch.inf, -torch.inf, -3.0, 1e9, 0.0])
    where = torch.rand(boxes.shape, generator=random) < 0.05
    boxes = torch.where(where, strange[torch.randint(6, boxes.shape, generator=random)], boxes)
    if number > 2:
        boxes[:, 1] = torch.tensor([0.0, 0.0, width, height])
        boxes[:, 2] = torch.tensor([width / 2, height / 2, width / 2, height / 2])
    return boxes


def case(size, dtype, layout, seed=0):
    batch, channels, height, width, number = size
    random = generator(seed)
    features = torch.randn(batch, channels, height, width, generator=random, dtype=torch.float64)
    boxes = some_boxes(batch, number, height, width, random)
    return features.to(dtype).contiguous(memory_format=layout), boxes, random


def expected_gradient(features, boxes, count, grad):
    """The reference gradient, in fp64 since the reference rounds the gradient of every box."""
    wide = features.double().requires_grad_()
    pooled = reference.roi_average_pool(wide, boxes, count)
    return torch.autograd.grad(pooled, wide, grad.double())[0].to(features.dtype)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("size", "dtype"), CASES, ids=str)
def test_forward(forward, size, dtype, layout):
    features, boxes, random = case(size, dtype, layout)
    got = forward(features, boxes, None)
    assert_near(got, reference.roi_average_pool(features, boxes))
    assert torch.equal(got, forward(features, boxes, None))
    count = torch.randint(0, size[4] + 1, size[:1], generator=random)
    assert_near(forward(features, boxes, count), reference.roi_average_pool(features, boxes, count))


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("size", "dtype"), CASES, ids=str)
def test_backward(backward, size, dtype, layout):
    features, boxes, random = case(size, dtype, layout)
    grad = torch.randn(size[0], size[4], size[1], generator=random, dtype=torch.float64).to(dtype)
    count = torch.randint(0, size[4] + 1, size[:1], generator=random, dtype=torch.int32)
    for rows in (None, count):
        got = backward(grad, boxes, rows, size[2], size[3], layout == torch.channels_last)
        assert_near(got, expected_gradient(features, boxes, rows, grad))
        assert got.is_contiguous(memory_format=layout)
        assert torch.equal(got, backward(grad, boxes, rows, size[2], size[3], layout == torch.channels_last))


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_and_infinity_outside_a_box_do_not_reach_it(forward, dtype, layout):
    features, boxes, random = case((1, 3, 20, 90, 40), dtype, layout)
    cells = torch.randint(20 * 90, (6,), generator=random)
    features[0, :, cells // 90, cells % 90] = torch.tensor(
        [torch.nan, torch.inf, -torch.inf] * 2, dtype=dtype
    )
    expected = reference.roi_average_pool(features, boxes)
    assert expected.isfinite().any()
    assert not expected.isfinite().all()
    assert_near(forward(features, boxes, None), expected)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
def test_nan_of_a_gradient_stays_in_its_box(backward, layout):
    boxes = torch.tensor([[[1.0, 1.0, 4.0, 3.0], [2.0, 0.0, 9.0, 2.0], [0.0, 0.0, 1.0, 1.0]]])
    grad = torch.randn(1, 3, 8)
    grad[0, 1] = torch.nan
    got = backward(grad, boxes, None, 5, 12, layout == torch.channels_last)
    assert got[:, :, :2, 2:9].isnan().all()
    assert got.isnan().sum() == 8 * 2 * 7


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("number", [0, 1, 31, 32, 33, 70])
def test_every_number_of_boxes(forward, backward, number, layout):
    features, boxes, random = case((2, 5, 11, 30, number), torch.float32, layout)
    grad = torch.randn(2, number, 5, generator=random)
    for count in (None, torch.tensor([number, number // 2])):
        assert_near(forward(features, boxes, count), reference.roi_average_pool(features, boxes, count))
        got = backward(grad, boxes, count, 11, 30, layout == torch.channels_last)
        assert_near(got, expected_gradient(features, boxes, count, grad))


def test_more_boxes_than_fit_in_shared_memory(backward):
    features, boxes, random = case((1, 2, 3, 5, 1100), torch.float32, torch.contiguous_format)
    grad = torch.randn(1, 1100, 2, generator=random)
    expected = expected_gradient(features, boxes, None, grad)
    got = backward(grad, boxes, None, 3, 5, False)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
def test_counts_out_of_range_are_clamped(forward, backward, layout):
    features, boxes, random = case((2, 3, 6, 9, 4), torch.float32, layout)
    grad = torch.randn(2, 4, 3, generator=random)
    count, clamped = torch.tensor([-7, 9]), torch.tensor([0, 4])
    assert torch.equal(forward(features, boxes, count), forward(features, boxes, clamped))
    assert (forward(features, boxes, count)[0] == 0).all()
    arguments = (6, 9, layout == torch.channels_last)
    assert torch.equal(backward(grad, boxes, count, *arguments), backward(grad, boxes, clamped, *arguments))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_boxes_of_every_dtype(forward, dtype):
    features, boxes, _ = case((2, 3, 15, 40, 6), torch.float32, torch.contiguous_format)
    boxes = boxes.to(dtype)
    assert_near(forward(features, boxes, None), reference.roi_average_pool(features, boxes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 6, 64, 96])
@pytest.mark.parametrize("offset", [1, 3])
def test_unaligned_maps(forward, dtype, channels, offset):
    for height, width in ((7, 30), (6, 33)):
        features, boxes, _ = case((1, channels, height, width, 5), dtype, torch.contiguous_format)
        memory = torch.full((features.numel() + offset,), torch.nan, dtype=dtype)
        shape, size = features.shape, height * width
        for strides in ((channels * size, size, width, 1), (channels * size, 1, width * channels, channels)):
            shifted = memory.as_strided(shape, strides, offset)
            shifted.copy_(features)
            assert shifted.data_ptr() % 16 != 0
            assert_near(forward(shifted, boxes, None), reference.roi_average_pool(features, boxes))


def test_other_strides(forward, backward):
    features, boxes, random = case((2, 3, 8, 21, 7), torch.bfloat16, torch.contiguous_format)
    expected = reference.roi_average_pool(features, boxes)
    assert_near(forward(scattered(features), scattered(boxes), None), expected)
    assert_near(forward(features.transpose(2, 3).contiguous().transpose(2, 3), boxes, None), expected)
    grad = torch.randn(7, 3, 2, generator=random).to(torch.bfloat16).permute(2, 0, 1)
    count = torch.tensor([[3, 0], [6, 0]])[:, 0]
    got = backward(grad, scattered(boxes), count, 8, 21, False)
    assert_near(got, expected_gradient(features, boxes, count, grad))


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
def test_boxes_in_few_rows_and_columns(forward, layout):
    """Rows and columns between the boxes are skipped, and so are NaNs in them."""
    features, _, _ = case((1, 4, 90, 200, 0), torch.bfloat16, layout)
    boxes = torch.tensor([[[50.0, 3, 61, 9], [55, 70, 57, 88], [58, 40, 60, 41], [50, 8, 51, 9]]])
    features[:, :, 20:40] = torch.nan
    features[:, :, :, :50] = torch.nan
    features[:, :, :, 61:] = torch.nan
    expected = reference.roi_average_pool(features, boxes)
    assert expected.isfinite().all()
    assert_near(forward(features, boxes, None), expected)


@pytest.mark.parametrize("layout", LAYOUTS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", [(0, 3, 4, 5, 6), (2, 0, 4, 5, 6), (2, 3, 4, 5, 0)], ids=str)
def test_empty(forward, backward, shape, layout):
    features, boxes, _ = case(shape, torch.float32, layout)
    assert forward(features, boxes, None).shape == (shape[0], shape[4], shape[1])
    got = backward(torch.ones(shape[0], shape[4], shape[1]), boxes, None, 4, 5, layout == torch.channels_last)
    assert torch.equal(got, torch.zeros(features.shape))


def test_errors(forward, backward):
    features, boxes, _ = case((2, 3, 4, 5, 6), torch.float32, torch.contiguous_format)
    grad = torch.ones(2, 6, 3)
    with pytest.raises(ValueError, match="features: expected shape"):
        forward(features[0], boxes, None)
    with pytest.raises(TypeError, match="features: expected dtype"):
        forward(features.int(), boxes, None)
    with pytest.raises(ValueError, match="features: expected height and width"):
        forward(features[:, :, :0], boxes, None)
    with pytest.raises(ValueError, match="boxes: expected shape"):
        forward(features, boxes[:1], None)
    with pytest.raises(TypeError, match="boxes: expected dtype"):
        forward(features, boxes.int(), None)
    with pytest.raises(TypeError, match="count: expected dtype"):
        forward(features, boxes, torch.ones(2))
    with pytest.raises(ValueError, match="count: expected shape"):
        backward(grad, boxes, torch.ones(3).int(), 4, 5, False)
    with pytest.raises(ValueError, match="boxes: expected shape"):
        backward(grad, boxes[:, 1:], None, 4, 5, False)
