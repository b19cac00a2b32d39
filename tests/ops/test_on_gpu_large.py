"""Every op on a GPU with offsets that need more than 32 bits, and with more images than a grid has rows."""

import gc

import pytest
import torch

from sp_fast.ops import (
    PackedMasks,
    connected_parts,
    kernel_supervision_loss,
    mask_nms,
    match_prompts,
    matrix_nms,
    reference,
    roi_average_pool,
    seed_saliency,
)
from tests.ops.gpu_cases import assert_expected, results, without_waiting

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

BF16 = torch.bfloat16
MORE_IMAGES_THAN_ROWS = 70_000


@pytest.fixture(autouse=True)
def clean():
    """Free memory after each test, and do not fill it, which would take longer than the op."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    yield
    torch.utils.deterministic.fill_uninitialized_memory = True
    gc.collect()
    torch.cuda.empty_cache()


def needs(gigabytes):
    free = torch.cuda.mem_get_info()[0] / 1e9
    if free < gigabytes:
        pytest.skip(f"needs {gigabytes} GB of free GPU memory, there are {free:.0f}")


def normal(*shape, dtype=BF16):
    return torch.empty(shape, dtype=dtype, device="cuda").normal_()


def last(x):
    """Copy the last image to the CPU."""
    return x[-1:].cpu()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize(
    "shape", [(2100, 16, 256, 256), (1, 2100, 1024, 1024), (MORE_IMAGES_THAN_ROWS, 3, 4, 5)], ids=str
)
def test_pooling(shape, layout):
    needs(25)
    features = normal(*shape).contiguous(memory_format=layout)
    height, width = shape[2:]
    box = torch.tensor([[width - 3.5, height - 3, width, height], [1, 0.5, 3, 2]], device="cuda")
    boxes = box.expand(shape[0], 2, 4)
    with without_waiting():
        got = results(roi_average_pool, (features, boxes), 1)
    # Channels are independent, so the last few are enough.
    few = features[-1:, -3:].cpu().double().requires_grad_()
    pooled = reference.roi_average_pool(few, boxes[-1:].cpu())
    assert_expected([got[0][-1:, :, -3:]], [pooled.detach()])
    place = torch.arange(got[0].numel(), device="cuda").reshape(got[0].shape)[-1:, :, -3:]
    gradient = ((place * 37 % 101).to(BF16) - 50) / 64
    (expected,) = torch.autograd.grad(pooled, few, gradient.cpu().double())
    assert_expected([got[1][-1:, -3:]], [expected])


@pytest.mark.parametrize(
    ("shape", "seeds"),
    [((2100, 16, 256, 256), 2), ((140, 8, 128, 128), 1024), ((MORE_IMAGES_THAN_ROWS, 3, 4, 5), 2)],
    ids=str,
)
def test_saliency(shape, seeds):
    needs(60)
    features = normal(*shape)
    given = normal(shape[0], seeds, shape[1])
    with without_waiting():
        pooled = seed_saliency(features, (2, 2)).seeds
        found = seed_saliency(features, seeds=given)
    expected = reference.pool_seeds(last(features), [(2, 2)])
    torch.testing.assert_close(pooled[-1:].cpu(), expected, rtol=8e-3, atol=8e-3)
    masks, score = reference.saliency_of_seeds(last(features), last(given), None, "dot", 0.5)
    y, _ = reference.normalized_saliency(last(features), last(given), None, "dot")
    flipped = (found.masks[-1:].unpack().cpu() != masks.unpack()).flatten(2)
    assert not (flipped & ((y - 0.5).abs() > 1e-4)).any()
    torch.testing.assert_close(last(found.score), score, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("images", "side"), [(70_000, 256), (2**31 // (16 * 64) + 1, 45)], ids=str)
def test_masks(images, side):
    needs(60)
    number, words = 16, (side * side + 31) // 32
    # Repeat a few masks, to get overlaps of every kind; random bits would not have these.
    pattern = torch.rand(5, number, side, side, device="cuda") < torch.rand(5, number, 1, 1, device="cuda")
    packed = PackedMasks.pack(pattern)
    masks = PackedMasks(packed.words.repeat(images // 5 + 1, 1, 1)[:images], side, side)
    assert masks.words.numel() == images * number * words > 2**31 - 1
    score = torch.rand(images, number, device="cuda")
    with without_waiting():
        parts, count = connected_parts(masks, max_parts=2)
    ends = PackedMasks(last(masks.words), side, side)
    of_ends, count_of_ends = connected_parts(ends, max_parts=2)
    assert_expected([parts.words[-1:], count[-1:]], [of_ends.words, count_of_ends])
    del parts
    with without_waiting():
        got = mask_nms(masks, score), matrix_nms(masks, score), masks.area(), masks.boxes()
    expected = (
        reference.mask_nms(ends, last(score)),
        reference.matrix_nms(ends, last(score)),
        ends.area(),
        ends.boxes(),
    )
    assert_expected([x[-1:] for x in got], expected)


def test_packing():
    needs(60)
    cells = torch.rand(33_000, 1, 256, 256, device="cuda", dtype=torch.float16) < 0.4
    with without_waiting():
        packed = PackedMasks.pack(cells)
        unpacked = packed.unpack()
    assert torch.equal(unpacked, cells)
    assert torch.equal(last(packed.words), PackedMasks.pack(last(cells)).words)


@pytest.mark.parametrize(("images", "channels"), [(84_000, 256), (MORE_IMAGES_THAN_ROWS, 3)], ids=str)
def test_matching(images, channels):
    needs(45)
    kernels, prompts = normal(images, 100, channels), normal(images, 4, channels)
    with without_waiting():
        leaves = [x.requires_grad_() for x in (kernels, prompts)]
        decorated, index = match_prompts(*leaves)
        got = torch.autograd.grad(decorated, leaves, decorated.detach())
    few = [last(x.detach()).double().requires_grad_() for x in leaves]
    expected, where = reference.match_prompts(*few)
    assert_expected([decorated.detach()[-1:], index[-1:]], [expected.detach(), where])
    gradient = last(decorated.detach()).double()
    assert_expected([x[-1:] for x in got], torch.autograd.grad(expected, few, gradient))


@pytest.mark.parametrize(("images", "channels"), [(28_000, 256), (MORE_IMAGES_THAN_ROWS, 3)], ids=str)
def test_supervision(images, channels):
    needs(45)
    kernels, targets = normal(3, images, 100, channels), normal(images, 7, channels)
    index = torch.randint(-1, 100, (3, images, 7), device="cuda")
    index[:, :-1] = -1  # so that only the last image contributes
    with without_waiting():
        leaves = [x.requires_grad_() for x in (kernels, targets)]
        loss = kernel_supervision_loss(*leaves, index, reduction="sum")
        got = torch.autograd.grad(loss, leaves, torch.ones_like(loss))
    few = [kernels.detach()[:, -1:].cpu().double(), last(targets.detach()).double()]
    few = [x.requires_grad_() for x in few]
    expected = reference.kernel_supervision_loss(*few, index[:, -1:].cpu(), reduction="sum")
    assert_expected([loss.detach()], [expected.detach()])
    gradients = torch.autograd.grad(expected, few)
    assert_expected([got[0][:, -1:], got[1][-1:]], gradients)
    assert not got[0][:, :-1].any()
