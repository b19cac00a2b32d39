"""Every op inside torch.compile(fullgraph=True), with gradients."""

import pytest
import torch
from torch import Tensor

from sp_fast import ops
from sp_fast.ops import PackedMasks
from sp_fast.ops.take_proposals import take_proposals
from tests.ops.deformable_cases import inside_cells
from tests.ops.op_cases import needs_extension

pytestmark = needs_extension


def masks_of(features: Tensor) -> tuple[Tensor, ...]:
    """Create, index and read PackedMasks inside the graph."""
    masks = PackedMasks.pack(features > 0)
    some = masks[:, 1:]
    parts, count = ops.connected_parts(masks, max_parts=3)
    shapes = some.area(), some.boxes(), PackedMasks(some.words, 6, 7)[0].area()
    return masks.words, masks.unpack(), *shapes, parts.words, count


def proposals(features: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
    """Run every op without gradients."""
    found = ops.seed_saliency(features, [(3, 3), (1, 2)], valid=valid, similarity="cosine")
    again = ops.seed_saliency(features, seeds=found.seeds)
    decayed = ops.matrix_nms(found.masks, found.score)
    kept = ops.mask_nms(found.masks, decayed, iou_threshold=0.6, max_masks=4)
    taken = take_proposals(found.masks, found.score, found.seeds, kept)
    return again.score, kept, decayed, taken.masks.words, taken.score, taken.seeds, taken.count


def training(features: Tensor, kernels: Tensor, boxes: Tensor, count: Tensor) -> tuple[Tensor, ...]:
    """Run every op with gradients."""
    prompts = ops.roi_average_pool(features, boxes, count)
    decorated, index = ops.match_prompts(kernels, prompts, count)
    again, _ = ops.match_prompts(decorated, prompts)
    stages = torch.stack([decorated, again * 2 + 1])
    matched = index[None, :, : boxes.shape[1]].expand(2, -1, -1)
    loss = ops.kernel_supervision_loss(stages, prompts, matched)
    return loss + ops.kernel_supervision_loss(stages, prompts.sin(), matched, reduction="sum"), index


def losses(logits: Tensor, masks: Tensor, row: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
    """Run the sums of mask costs and losses, and the focal loss."""
    sums = ops.mask_pair_sums(logits.flatten(0, 1), masks.flatten(0, 1), row)
    total = sums.cross_entropy.sum() + (sums.overlap / (sums.squares + sums.target_squares)).sum()
    return total + ops.upsampled_focal_loss(logits, labels), *ops.mask_overlaps(logits, masks)


def attention(value: Tensor, sizes: Tensor, locations: Tensor, weights: Tensor) -> tuple[Tensor]:
    """Deformable attention between two other ops."""
    return (ops.deformable_attention(value.sin(), sizes, locations, weights).cos(),)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def fresh():
    """Disable the cache on disk: graphs of an earlier build may call ops with other arguments."""
    import torch._inductor.config

    with torch._inductor.config.patch(force_disable_caches=True):
        yield


def compiled(function, backend):
    torch._dynamo.reset()
    return torch.compile(function, backend=backend, fullgraph=True)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_ops_without_gradients(backend):
    def everything(features: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        return *masks_of(features), *proposals(features, valid)

    inputs = normal(2, 4, 6, 7), torch.tensor([[6, 7], [4, 3]])
    for got, expected in zip(compiled(everything, backend)(*inputs), everything(*inputs), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_ops_with_gradients(backend):
    features, kernels = normal(2, 4, 6, 7).requires_grad_(), normal(5, 4).requires_grad_()
    boxes = torch.tensor([[[0, 0, 3, 4], [2, 1, 7, 6], [5, 5, 6, 6]]] * 2).float()
    inputs = features, kernels, boxes, torch.tensor([3, 2])
    got, expected = compiled(training, backend)(*inputs), training(*inputs)
    torch.testing.assert_close(got, expected)
    mine, theirs = (torch.autograd.grad(result[0], (features, kernels)) for result in (got, expected))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_mask_losses(backend):
    logits = normal(2, 3, 4, 5).requires_grad_()
    inputs = logits, normal(2, 2, 8, 10).sigmoid(), torch.arange(6) % 4, torch.arange(160).view(2, 8, 10) % 4
    got, expected = compiled(losses, backend)(*inputs), losses(*inputs)
    torch.testing.assert_close(got, expected)
    mine, theirs = (torch.autograd.grad(result[0], logits) for result in (got, expected))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_attention(backend):
    case = inside_cells(
        [(4, 3), (2, 5)],
        torch.Generator().manual_seed(0),
        batch=2,
        queries=3,
        heads=2,
        points=2,
        depth=5,
        dtype=torch.float32,
    )
    leaves = [x.requires_grad_() for x in (case[0], *case[2:])]
    (got,), (expected,) = compiled(attention, backend)(*case), attention(*case)
    torch.testing.assert_close(got, expected)
    mine, theirs = (torch.autograd.grad(result.sum(), leaves) for result in (got, expected))
    torch.testing.assert_close(mine, theirs)


def test_sizes_that_change():
    """One graph serves every batch size, number of proposals and map size."""
    torch._dynamo.utils.counters.clear()
    graph = compiled(training, "aot_eager")
    with torch._dynamo.config.patch(assume_static_by_default=False):
        for batch, number, height in ((2, 3, 6), (3, 4, 9), (5, 6, 8)):
            features = normal(batch, 4, height, 7).requires_grad_()
            boxes = normal(batch, number, 4) * 3
            inputs = features, normal(8, 4), boxes, torch.full((batch,), number)
            got, expected = graph(*inputs), training(*inputs)
            torch.testing.assert_close(got, expected)
            mine, theirs = (torch.autograd.grad(result[0], features) for result in (got, expected))
            torch.testing.assert_close(mine, theirs)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
