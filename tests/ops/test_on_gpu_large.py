"""Every op on a GPU with offsets that need more than 32 bits, and with more images than a grid has rows."""

import gc

import pytest
import torch

from sp_fast.ops import (
    PackedMasks,
    connected_parts,
    deformable_attention,
    deformable_reference,
    kernel_supervision_loss,
    mask_nms,
    mask_overlaps,
    mask_pair_sums,
    mask_sums_reference,
    match_prompts,
    matrix_nms,
    reference,
    roi_average_pool,
    seed_saliency,
    upsampled_focal_loss,
)
from sp_fast.ops.take_proposals import take_proposals
from tests.ops.deformable_cases import inside_cells
from tests.ops.gpu_cases import assert_expected, results, without_waiting
from tests.ops.op_cases import generator

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
    seeds = normal(images, number, 4)
    del got
    chosen = torch.arange(number, device="cuda").flip(0).expand(images, -1).contiguous()
    with without_waiting():
        taken = take_proposals(masks, score, seeds, chosen)
    assert torch.equal(last(taken.masks.words), ends.words.flip(1))
    assert_expected([taken.score[-1:], taken.seeds[-1:]], [last(score).flip(1), last(seeds).flip(1)])


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


@pytest.mark.parametrize(("images", "side"), [(2100, 256), (MORE_IMAGES_THAN_ROWS, 4)], ids=str)
def test_mask_losses(images, side):
    needs(45)
    logits = normal(images, 16, side, side)
    masks = torch.randint(0, 5, (images, 4, 2 * side, 2 * side), dtype=torch.uint8, device="cuda")
    with without_waiting():
        overlaps = mask_overlaps(logits, masks)
    ends, of_ends = last(logits).double(), last(masks)
    assert_sums([x[-1:] for x in overlaps], mask_sums_reference.mask_overlaps(ends, of_ends))
    row, few = torch.arange(images * 16, device="cuda") // 4, torch.arange(16) // 4
    with without_waiting():
        pairs = logits.flatten(0, 1).requires_grad_()
        sums = mask_pair_sums(pairs, masks.flatten(0, 1), row)
        (got,) = torch.autograd.grad(sum(x.sum() for x in sums[:3]), pairs)
    ends = ends[0].requires_grad_()
    expected = mask_sums_reference.mask_pair_sums(ends, of_ends[0], few)
    assert_sums([x.detach()[-16:] for x in sums], [x.detach() for x in expected])
    assert_expected([got[-16:]], torch.autograd.grad(sum(x.sum() for x in expected[:3]), ends))


def assert_sums(got, expected):
    """Sums of many cells, one after the other in fp32."""
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one.cpu().double(), other.double(), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(("images", "side"), [(2100, 256), (MORE_IMAGES_THAN_ROWS, 4)], ids=str)
def test_focal_loss(images, side):
    needs(45)
    logits = normal(images, 16, side, side)
    logits[:-1] = -50  # so that only the last image contributes
    labels = torch.randint(0, 20, (images, 2 * side, 2 * side), device="cuda")
    labels[:-1] = 16
    with without_waiting():
        leaf = logits.requires_grad_()
        loss = upsampled_focal_loss(leaf, labels)
        (got,) = torch.autograd.grad(loss, leaf, torch.ones_like(loss))
    ends = last(logits.detach()).double().requires_grad_()
    expected = mask_sums_reference.upsampled_focal_loss(ends, last(labels), 0.25)
    assert_sums([loss.detach()], [expected.detach()])
    assert_expected([got[-1:]], torch.autograd.grad(expected, ends))
    assert not got[:-1].any()


@pytest.mark.parametrize(
    ("images", "sides", "queries", "points"),
    [(130, (256, 260), 70, 4), (MORE_IMAGES_THAN_ROWS, (4, 5), 250, 16)],
    ids=str,
)
def test_attention(images, sides, queries, points):
    needs(50)
    numbers = {"batch": 1, "queries": queries, "heads": 8 if points == 4 else 4, "points": points}
    value, sizes, locations, weights = inside_cells([sides], generator(0), depth=32, dtype=BF16, **numbers)
    value = normal(images, *value.shape[1:])
    everywhere = [x.cuda().repeat(images, *[1] * (x.dim() - 1)) for x in (locations, weights)]
    on_device = sizes.cuda()
    with without_waiting():
        leaves = [x.requires_grad_() for x in (value, *everywhere)]
        out = deformable_attention(leaves[0], on_device, *leaves[1:])
        got = torch.autograd.grad(out, leaves, out.detach())
    few = [last(x.detach()).double().requires_grad_() for x in leaves]
    expected = deformable_reference.deformable_attention(few[0], sizes, *few[1:])
    assert_expected([out.detach()[-1:]], [expected.detach()])
    gradients = torch.autograd.grad(expected, few, last(out.detach()).double())
    assert_expected([x[-1:] for x in got], gradients, relative=True)
