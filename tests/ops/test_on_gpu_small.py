"""Every op, forward and backward, at small odd sizes: fast enough for compute-sanitizer. Also on the CPU."""

from functools import partial

import pytest
import torch

from sp_fast import ops
from sp_fast.ops import PackedMasks, deformable_reference, mask_sums_reference, reference
from sp_fast.proposals import SaliencyProposer
from tests.ops.deformable_cases import inside_cells

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 8e-3}

pytestmark = [
    pytest.mark.parametrize("dtype", TOLERANCE, ids=str),
    pytest.mark.parametrize("channels", [24, 67]),
]
# Fewer cells than a word, an odd number, rows of a multiple of 16 bytes, many words.
over_maps = pytest.mark.parametrize("size", [(1, 1), (3, 5), (13, 24), (25, 42)], ids=str)
over_layouts = pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)


@pytest.fixture(autouse=True)
def memory_as_allocated():
    """Do not fill new memory, which would hide unwritten elements from initcheck."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    yield
    torch.utils.deterministic.fill_uninitialized_memory = True


def normal(*shape, dtype=torch.float32):
    """Normally distributed values, the same on every device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE, dtype)


def assert_near(got, expected, dtype):
    """Check that integers are equal, and floats within the rounding of the dtype."""
    for one, other in zip(got, expected, strict=True):
        if other.is_floating_point():
            one, other = one.cpu().double(), other.cpu().double()
            torch.testing.assert_close(one, other, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        else:
            assert torch.equal(one.cpu(), other.cpu())


def with_gradients(function, leaves, *rest):
    """Compute the result and the gradients of its sum."""
    leaves = [x.detach().requires_grad_() for x in leaves]
    result = function(*leaves, *rest)
    return [result.detach(), *torch.autograd.grad(result.sum(), leaves, materialize_grads=True)]


@over_layouts
@over_maps
def test_masks(channels, dtype, size, layout):
    features = normal(2, channels, *size, dtype=dtype).contiguous(memory_format=layout)
    valid = torch.tensor([size, [max(1, size[0] - 2), max(1, size[1] - 1)]], device=DEVICE)
    seeds = features.flatten(2).transpose(1, 2)[:, :100].contiguous()
    found = [
        ops.seed_saliency(features, [(2, 3), (1, 1)], valid=valid, similarity="cosine"),
        ops.seed_saliency(features, [(2, 3), (1, 1)], valid=valid, similarity="dot"),
        ops.seed_saliency(features, seeds=seeds),
    ]
    for masks, score, _ in found:
        on_cpu = masks.to("cpu"), score.cpu()
        for options in ({"max_masks": 3}, {"iou_threshold": 0.9, "max_masks": 70}):
            assert_near(
                [ops.mask_nms(masks, score, **options)], [reference.mask_nms(*on_cpu, **options)], dtype
            )
        for kernel in ("gaussian", "linear"):
            decayed = ops.matrix_nms(masks, score, kernel=kernel)
            assert_near([decayed], [reference.matrix_nms(*on_cpu, kernel=kernel)], torch.float32)
        for connectivity in (4, 8):
            (parts, count), (expected, number) = (
                of.connected_parts(each, max_parts=3, connectivity=connectivity)
                for of, each in ((ops, masks), (reference, on_cpu[0]))
            )
            assert_near([parts.words, count], [expected.words, number], dtype)
        packed = PackedMasks.pack(masks.unpack())
        shapes = masks.to("cpu").area(), masks.to("cpu").boxes()
        assert_near([packed.words, packed.area(), packed.boxes()], [masks.words, *shapes], dtype)


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_proposals(channels, dtype, preset):
    features = normal(2, channels, 13, 24, dtype=dtype)
    valid = torch.tensor([[13, 24], [11, 20]], device=DEVICE)
    found = SaliencyProposer(preset=preset).from_features(features, valid)
    area = found.masks.area()
    real = torch.arange(area.shape[1], device=DEVICE) < found.count[:, None]
    assert torch.equal(area > 0, real)
    assert found.masks.boxes()[~real].eq(0).all()


@over_layouts
@over_maps
def test_pooling(channels, dtype, size, layout):
    features = normal(2, channels, *size, dtype=dtype).contiguous(memory_format=layout)
    corners = normal(2, 7, 2, 2).abs() * torch.tensor(size[::-1], device=DEVICE) - 0.2
    boxes = torch.cat([corners.amin(2), corners.amax(2)], dim=-1)
    for count in (None, torch.tensor([7, 2], device=DEVICE)):
        got = with_gradients(ops.roi_average_pool, [features], boxes, count)
        expected = with_gradients(reference.roi_average_pool, [features.double()], boxes, count)
        assert_near(got, expected, dtype)


@pytest.mark.parametrize(("number", "found"), [(1, 1), (5, 0), (33, 17)])
def test_prompts(channels, dtype, number, found):
    prompts, count = normal(2, found, channels, dtype=dtype), torch.tensor([found, found // 2], device=DEVICE)
    for kernels in (normal(number, channels, dtype=dtype), normal(2, number, channels, dtype=dtype)):
        got = with_gradients(lambda *x: ops.match_prompts(*x)[0], [kernels, prompts], count)
        leaves = [kernels.double(), prompts.double()]
        assert_near(got, with_gradients(lambda *x: reference.match_prompts(*x)[0], leaves, count), dtype)
    stages = normal(3, 2, number, channels, dtype=dtype)
    index = torch.arange(6 * found, device=DEVICE).reshape(3, 2, found) % (number + 1) - 1
    for reduction in ("mean", "sum"):
        options = {"reduction": reduction}
        got = with_gradients(partial(ops.kernel_supervision_loss, **options), [stages, prompts], index)
        expected = partial(reference.kernel_supervision_loss, **options)
        assert_near(got, with_gradients(expected, [stages.double(), prompts.double()], index), dtype)


@over_maps
def test_mask_losses(channels, dtype, size):
    """As many masks as `channels`."""
    logits, big = normal(2, channels, *size, dtype=dtype), [2 * side for side in size]
    masks = (4 * normal(2, 5, *big).abs()).clamp(max=4).to(torch.uint8)
    expected = mask_sums_reference.mask_overlaps(logits.double(), masks)
    assert_near(ops.mask_overlaps(logits, masks), expected, torch.float32)
    pairs, targets = logits.flatten(0, 1), masks.flatten(0, 1)
    row = torch.arange(len(pairs), device=DEVICE) % len(targets)

    def sums(of, x):
        return torch.stack(of.mask_pair_sums(x, targets, row)[:3])

    got = with_gradients(partial(sums, ops), [pairs])
    assert_near(got, with_gradients(partial(sums, mask_sums_reference), [pairs.double()]), dtype)
    labels = (channels * normal(2, *big).abs()).long()
    got = with_gradients(ops.upsampled_focal_loss, [logits], labels)
    focal = partial(mask_sums_reference.upsampled_focal_loss, alpha=0.25)
    assert_near(got, with_gradients(focal, [logits.double()], labels), dtype)


def test_attention(channels, dtype):
    """As many channels for each head as `channels`."""
    numbers = {"batch": 2, "queries": 9, "heads": 3, "points": 2, "depth": channels}
    random = torch.Generator().manual_seed(0)
    case = inside_cells([(1, 1), (3, 5), (7, 4)], random, dtype=dtype, **numbers)
    value, sizes, locations, weights = (x.to(DEVICE) for x in case)
    got = with_gradients(
        lambda *x: ops.deformable_attention(x[0], sizes, *x[1:]), [value, locations, weights]
    )
    wide = [x.double() for x in (value, locations, weights)]
    expected = with_gradients(lambda *x: deformable_reference.deformable_attention(x[0], sizes, *x[1:]), wide)
    for one, other in zip(got, expected, strict=True):
        # Gradients are sums over channels or queries, compared relative to the largest.
        scale = max(1.0, other.abs().max().item())
        assert_near([one / scale], [other / scale], dtype)
