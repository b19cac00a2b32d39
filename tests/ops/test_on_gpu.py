"""Every op on a GPU against the reference on the CPU, in poisoned memory and without synchronisation."""

import itertools
from contextlib import contextmanager

import pytest
import torch

from sp_fast.ops import (
    PackedMasks,
    connected_parts,
    deformable_attention,
    kernel_supervision_loss,
    mask_nms,
    mask_overlaps,
    mask_pair_sums,
    match_prompts,
    matrix_nms,
    reference,
    roi_average_pool,
    seed_saliency,
    upsampled_focal_loss,
)
from sp_fast.ops.mask_runs import MaskRuns, image_masks, mask_runs
from sp_fast.ops.take_proposals import take_proposals
from sp_fast.proposals import SaliencyProposer
from tests.ops.deformable_cases import inside_cells
from tests.ops.gpu_cases import (
    CASES,
    DTYPES,
    LAYOUTS,
    ON_GPU,
    Case,
    assert_expected,
    assert_same,
    blobs,
    boxes_of,
    expected_results,
    in_layout,
    on_gpu,
    results,
    smooth_features,
    to_gpu,
    without_waiting,
)
from tests.ops.op_cases import checkerboard, generator, scattered, spiral

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

# Cells may differ from the reference where the saliency is this near the threshold: fp32 products use TF32,
# whose inputs have 10 bits; 16-bit products are exact, but seeds summed in another order round differently.
NEAR_THRESHOLD = {torch.float32: 2e-3, torch.float16: 2e-3, torch.bfloat16: 1e-2}
# Largest fraction of masks with a cell that differs, at full size. Rounding these inputs to TF32 on the CPU
# changes 1 to 4 cells in 0.05 to 0.6 % of the masks.
FLIPPED = {torch.float32: 0.01, torch.float16: 0.02, torch.bfloat16: 0.02}

SHAPES = [(1, 1, 1), (63, 3, 5), (64, 7, 16), (300, 25, 42), (256, 31, 33), (16, 40, 40), (16, 60, 60)]
EXACT = [name for name in CASES if name != "seed_saliency"]


@contextmanager
def placed_without_waiting(x):
    """Copy a tensor to the GPU, then forbid synchronisation."""
    placed = x.cuda()
    with without_waiting():
        yield placed


def assert_saliency(found, features, seeds, valid, similarity):
    """Check masks, except near the threshold, and scores of equal masks; return the fraction that differs."""
    features, seeds = features.cpu(), seeds.cpu()
    valid = None if valid is None else valid.cpu()
    masks, score = reference.saliency_of_seeds(features, seeds, valid, similarity, 0.5)
    y, _ = reference.normalized_saliency(features, seeds, valid, similarity)
    flipped = (found.masks.unpack().cpu() != masks.unpack()).flatten(2)
    near = NEAR_THRESHOLD[features.dtype]
    assert not (flipped & ((y - 0.5).abs() > near)).any()
    differs = flipped.any(-1)
    torch.testing.assert_close(found.score.cpu()[~differs], score[~differs], rtol=near, atol=near)
    return differs.float().mean().item()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_same_as_the_reference(name, dtype, layout):
    inputs = CASES[name].inputs(0, dtype)
    case = CASES[name]
    assert_expected(on_gpu(case, to_gpu(inputs, layout)), expected_results(case, inputs), case.atomic)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_saliency_of_given_seeds(shape, dtype, layout, similarity):
    features = smooth_features(1, 3, *shape).to(dtype)
    seeds = torch.randn(3, 19, shape[0], generator=generator(2)).to(dtype)
    height, width = shape[1:]
    for valid in (
        None,
        torch.tensor([[height, width], [1, width], [max(1, height - 2), max(1, width // 2)]]),
    ):
        placed = to_gpu([features, seeds], layout)
        on_device = None if valid is None else valid.cuda()
        with without_waiting():
            found = seed_saliency(placed[0], seeds=placed[1], valid=on_device, similarity=similarity)
        assert_saliency(found, features, seeds, valid, similarity)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grid", [(1, 1), (7, 5), (16, 16), [(25, 42), (3, 4), (40, 50)]], ids=str)
def test_pooled_seeds(grid, dtype, layout):
    features = smooth_features(3, 2, 67, 25, 42).to(dtype)
    assert_seeds(features, grid, torch.tensor([[25, 42], [18, 5]]), layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pooled_seeds_of_a_wide_map(dtype, layout):
    assert_seeds(smooth_features(3, 1, 20, 6, 400).to(dtype), (4, 9), torch.tensor([[5, 390]]), layout)


def assert_seeds(features, grid, valid, layout):
    case = Case(lambda *_: (), lambda x, v: seed_saliency(x, grid, valid=v).seeds, lambda x, v: None)
    (got,) = on_gpu(case, to_gpu([features, valid], layout))
    expected = reference.pool_seeds(features.float(), grid if isinstance(grid, list) else [grid], valid)
    assert got.dtype == features.dtype
    tolerance = ON_GPU[features.dtype]
    torch.testing.assert_close(got.cpu().float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("grid", [(16, 16), (25, 42)], ids=str)
def test_few_masks_differ_at_full_size(grid, dtype, layout):
    features = smooth_features(4, 2, 2048, 25, 42).to(dtype)
    placed = in_layout(features.cuda(), layout)
    with without_waiting():
        found = seed_saliency(placed, grid)
    assert assert_saliency(found, features, found.seeds, None, "dot") <= FLIPPED[dtype]


def test_saliency_that_is_not_defined():
    features = torch.randn(4, 8, 5, 7, generator=generator(5))
    features[0], features[1, 3, 2, 2], features[2, 3, 2, 2] = 2.0, torch.nan, torch.inf
    with placed_without_waiting(features) as x:
        found = seed_saliency(x, (2, 2))
    assert not found.masks.area()[:3].any()
    assert not found.score[:3].any()
    assert found.masks.area()[3].all()


# The last four: more masks than shared memory holds, more than one block visits, longer masks than shared
# memory holds, and overlaps counted in chunks.
@pytest.mark.parametrize(
    ("number", "size"),
    [
        *itertools.product([0, 1, 5, 63, 64, 65, 129, 1050], [(1, 1), (3, 5), (25, 42)]),
        *[(1500, (25, 42)), (8200, (3, 5)), (300, (100, 96)), (200, (50, 60))],
    ],
    ids=str,
)
def test_suppression(number, size):
    masks, score = blobs(6, 2, number, *size)
    on_device = masks.to("cuda")
    for most, threshold in ((1, 0.5), (20, 0.5), (200, 0.9), (200, 0.0)):
        options = dict(iou_threshold=threshold, min_area=2, max_masks=most)
        with placed_without_waiting(score) as placed:
            got = mask_nms(on_device, placed, **options)
        assert torch.equal(got.cpu(), reference.mask_nms(masks, score, **options))
    for kernel in ("gaussian", "linear"):
        with placed_without_waiting(score) as placed:
            got = matrix_nms(on_device, placed, kernel=kernel)
        expected = reference.matrix_nms(masks, score, kernel=kernel)
        torch.testing.assert_close(got.cpu(), expected, rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("size", [(1, 1), (1, 31), (4, 8), (3, 11), (25, 42), (200, 333)], ids=str)
def test_packed_masks(size):
    cells = torch.rand(3, 5, *size, generator=generator(7)) < 0.3
    cells[0, 0], cells[1, 1] = False, True
    with placed_without_waiting(cells) as placed:
        packed = PackedMasks.pack(placed)
        got = packed.words, packed.unpack(), packed.area(), packed.boxes()
    expected = PackedMasks.pack(cells)
    for one, other in zip(got, (expected.words, cells, expected.area(), expected.boxes()), strict=True):
        assert torch.equal(one.cpu(), other)
    assert torch.equal(PackedMasks.pack(scattered(cells.cuda())).words.cpu(), expected.words)


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize(
    "size", [(1, 1), (1, 31), (15, 20), (45, 60), (128, 128), (131, 131), (400, 700)], ids=str
)
def test_parts(size, connectivity):
    """The largest masks do not fit into shared memory, and are more than there are blocks for them."""
    cells = torch.rand(300, *size, generator=generator(7)) < torch.linspace(0, 0.7, 300)[:, None, None]
    cells[0], cells[1] = checkerboard(*size), True
    if size[0] == size[1]:
        cells[2] = spiral(size[0])
    masks = PackedMasks.pack(cells)
    options = dict(max_parts=6, min_area=2, connectivity=connectivity)
    with placed_without_waiting(masks.words) as placed:
        parts, count = connected_parts(PackedMasks(placed, *size), **options)
    expected, expected_count = connected_parts(masks, **options)
    assert torch.equal(parts.words.cpu(), expected.words)
    assert torch.equal(count.cpu(), expected_count)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (63, 7, 9), (256, 13, 334), (300, 50, 31), (64, 200, 40)], ids=str
)
@pytest.mark.parametrize("number", [0, 1, 30])
def test_pooling(number, shape, dtype, layout):
    assert_pooled(number, shape, dtype, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("number", "shape"), [(70, (32, 50, 100)), (70, (32, 20, 150)), (1100, (5, 13, 21))], ids=str
)
def test_pooling_of_many_boxes(number, shape, dtype, layout):
    assert_pooled(number, shape, dtype, layout)


def assert_pooled(number, shape, dtype, layout):
    features = torch.randn(2, *shape, generator=generator(8)).to(dtype)
    inputs = (features, boxes_of(9, 2, number, *shape[1:]), torch.tensor([number, number // 2]))
    case = CASES["roi_average_pool"]
    assert_expected(on_gpu(case, to_gpu(inputs, layout)), expected_results(case, inputs))


def assert_matched_in_one_channel(got, inputs):
    """Check that the chosen prompt is one of the best, and that the other results follow from it.

    With one channel every cosine is 1 or -1, so rounding decides which of many prompts is best.
    """
    kernels, prompts, count = inputs
    index = got[1].cpu()
    real = torch.arange(prompts.shape[1]) < count[:, None]
    assert torch.equal(index >= 0, real.any(1, keepdim=True).expand_as(index))
    assert (index < count[:, None]).all()
    chosen = index.clamp(min=0)[..., None]
    if prompts.shape[1]:
        cosine = (kernels.sign() * prompts.sign().mT).masked_fill(~real[:, None], -1)
        assert torch.equal(cosine.gather(2, chosen)[..., 0], cosine.amax(2))

    def match(kernels, prompts):
        if not prompts.shape[1]:
            return kernels.expand(len(prompts), -1, -1), index
        added = prompts.expand(-1, -1, 1).gather(1, chosen)
        return kernels + added * (index >= 0)[..., None], index

    assert_expected(got, results(match, [kernels.double(), prompts.double()], 2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [1, 63, 256, 300])
@pytest.mark.parametrize(("number", "prompts"), [(1, 1), (100, 0), (100, 17), (333, 300)])
def test_matching_and_supervision(number, prompts, channels, dtype):
    random = generator(10)
    prompt = torch.randn(2, prompts, channels, generator=random).to(dtype)
    count = torch.tensor([prompts, prompts // 3])
    case = CASES["match_prompts"]
    for shape in ((number, channels), (2, number, channels)):
        inputs = (torch.randn(shape, generator=random).to(dtype), prompt, count)
        if channels > 1:
            assert_expected(on_gpu(case, to_gpu(inputs)), expected_results(case, inputs))
        else:
            assert_matched_in_one_channel(on_gpu(case, to_gpu(inputs)), inputs)
    kernels = torch.randn(3, 2, number, channels, generator=random).to(dtype)
    index = torch.randint(-1, number, (3, 2, prompts), generator=random)
    case = CASES["kernel_supervision_loss"]
    assert_expected(
        on_gpu(case, to_gpu((kernels, prompt, index))), expected_results(case, (kernels, prompt, index))
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("queries", "heads", "depth"), [(1, 1, 1), (300, 8, 32), (70, 3, 20)])
def test_deformable_attention(queries, heads, depth, dtype):
    numbers = {"batch": 2, "queries": queries, "heads": heads, "points": 4, "depth": depth}
    value, sizes, *others = inside_cells([(4, 5), (7, 9), (14, 18)], generator(11), dtype=dtype, **numbers)
    case, inputs = CASES["deformable_attention"], (value, *others, sizes)
    assert_expected(on_gpu(case, to_gpu(inputs)), expected_results(case, inputs), relative=True)


def column_masks(runs: MaskRuns, height: int, width: int) -> torch.Tensor:
    """The masks, bool [K, height, width], that run lengths stand for."""
    lengths, number = runs.lengths.cpu().long(), runs.number.cpu()
    inside = torch.cat([torch.arange(n) % 2 == 1 for n in number.tolist()])
    return inside.repeat_interleave(lengths).reshape(-1, width, height).transpose(1, 2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("cells", "size"), [((1, 1), (1, 1)), ((25, 42), (640, 427)), ((7, 9), (5, 31))])
def test_mask_runs(cells, size, dtype):
    """The same masks as on the CPU, but where the saliency is the threshold up to rounding."""
    saliency = torch.rand(5, *cells, generator=generator(12)).to(dtype)
    threshold = torch.tensor([0.5, 0.3, 0.6, -1.0, 2.0])
    found = mask_runs(saliency.cuda(), threshold.cuda(), size)
    assert found.lengths.is_cuda
    got, expected = column_masks(found, *size), image_masks(saliency, size, threshold)
    near = image_masks(saliency, size, threshold - 1e-5) != image_masks(saliency, size, threshold + 1e-5)
    assert torch.equal(got[~near], expected[~near])
    assert near.float().mean() < 1e-2
    assert mask_runs(saliency[:0].cuda(), threshold[:0].cuda(), size).number.shape == (0,)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_two_runs_are_bit_equal(name, dtype):
    case, inputs = CASES[name], to_gpu(CASES[name].inputs(1, dtype))
    assert_same(case, on_gpu(case, inputs), on_gpu(case, inputs))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_graph_replayed_with_other_values(name, dtype):
    case = CASES[name]
    inputs = to_gpu(case.inputs(2, dtype))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            results(case.op, inputs, case.wanted)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        # Beginning and ending a capture synchronises, so the mode is set inside.
        torch.cuda.set_sync_debug_mode("error")
        try:
            captured = results(case.op, inputs, case.wanted)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    for seed in (3, 4):
        others = to_gpu(case.inputs(seed, dtype))
        for placed, other in zip(inputs, others, strict=True):
            placed.copy_(other)
        graph.replay()
        assert_same(case, captured, results(case.op, others, case.wanted))


@pytest.mark.parametrize("name", CASES)
def test_runs_on_the_current_stream(name):
    case = CASES[name]
    values = to_gpu(case.inputs(5, torch.float32))
    expected = results(case.op, values, case.wanted)
    late = [torch.zeros_like(x) for x in values]
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        # On any other stream an op would be done before its inputs are there.
        torch.cuda._sleep(100_000_000)
        for placed, value in zip(late, values, strict=True):
            placed.copy_(value)
        got = results(case.op, late, case.wanted)
        torch.cuda.current_stream().synchronize()
    assert_same(case, got, expected)


@pytest.mark.parametrize("name", CASES)
def test_runs_on_the_device_of_its_inputs(name):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    case = CASES[name]
    inputs = [x.to("cuda:1") for x in case.inputs(6, torch.float32)]
    expected = on_gpu(case, to_gpu(case.inputs(6, torch.float32)))
    got = results(case.op, inputs, case.wanted)
    assert all(one.device == inputs[0].device for one in got)
    assert_same(case, [one.to("cuda:0") for one in got], expected)


@pytest.mark.parametrize("preset", ["paper", "official"])
def test_proposals_without_waiting(preset):
    """Compare by overlap: a cell changed by TF32 may decide which of two similar masks is suppressed."""
    features = smooth_features(7, 3, 64, 25, 42)
    expected = SaliencyProposer(preset=preset).from_features(features)
    with placed_without_waiting(features) as placed:
        got = SaliencyProposer(preset=preset).from_features(placed)
    assert got.masks.words.is_cuda
    assert ((got.count.cpu() - expected.count).abs() <= 1).all()
    for image in range(3):
        ours, theirs = (
            of.masks.unpack()[image, : of.count[image]].flatten(1).cpu().float() for of in (got, expected)
        )
        common = ours @ theirs.T
        overlap = common / (ours.sum(1)[:, None] + theirs.sum(1) - common)
        assert overlap.amax(0).mean() > 0.95
        assert overlap.amax(1).mean() > 0.95


@pytest.mark.parametrize("shape", [(0, 8, 5, 7), (2, 8, 5, 7)], ids=str)
def test_empty_tensors(shape):
    batch, channels = shape[:2]
    features = torch.randn(shape, device="cuda", requires_grad=True)
    sizes = torch.tensor([shape[2:]], device="cuda")
    with without_waiting():
        none = seed_saliency(features, seeds=features.new_empty(batch, 0, channels))
        found = seed_saliency(features, (2, 3))
        for masks, score in ((none.masks, none.score), (found.masks, found.score)):
            kept, decayed = mask_nms(masks, score, max_masks=4), matrix_nms(masks, score)
            assert kept.shape == (batch, 4)
            assert decayed.shape == score.shape
            assert masks.boxes().shape == (*score.shape, 4)
            assert connected_parts(masks, max_parts=3)[0].shape == (*score.shape, 3)
            assert take_proposals(masks, score, found.seeds[:, : score.shape[1]], kept).count.shape == (
                batch,
            )
        pooled = roi_average_pool(features, features.new_empty(batch, 0, 4))
        (of_features,) = torch.autograd.grad(pooled, features, torch.ones_like(pooled))
        kernels = torch.randn(6, channels, device="cuda", requires_grad=True)
        decorated, index = match_prompts(kernels, pooled.detach())
        loss = kernel_supervision_loss(
            kernels.expand(3, batch, -1, -1), pooled.detach(), index.new_empty(3, batch, 0)
        )
        (of_kernels,) = torch.autograd.grad(loss + decorated.sum(), kernels)
        of_maps = no_mask_losses(features)
        value = features.flatten(2).transpose(1, 2).unflatten(2, (2, -1))
        points = value.new_empty(batch, 0, 2, 1, 4, 2)
        attended = deformable_attention(value, sizes, points, points[..., 0])
        (of_value,) = torch.autograd.grad(attended.sum(), features)
    assert none.masks.shape == (batch, 0)
    assert (mask_nms(none.masks, none.score) == -1).all()
    assert attended.shape == (batch, 0, channels)
    assert not any(gradient.any() for gradient in (of_features, of_maps, of_value))
    assert torch.equal(of_kernels, torch.full_like(of_kernels, batch))
    assert loss.item() == 0
    assert (index == -1).all()


def no_mask_losses(features):
    """Run the mask losses without masks, targets, pairs or classes; return the gradient of their sum."""
    batch, _, height, width = features.shape
    masks = torch.zeros(batch, 3, 2 * height, 2 * width, dtype=torch.uint8, device=features.device)
    logits = features[:, :0]
    assert mask_overlaps(logits, masks).target_area.shape == (batch, 3)
    assert mask_overlaps(features, masks[:, :0]).overlap.shape == (*features.shape[:2], 0)
    row = torch.zeros(0, dtype=torch.int64, device=features.device)
    sums = mask_pair_sums(logits.flatten(0, 1), masks.flatten(0, 1), row)
    loss = upsampled_focal_loss(logits, masks[:, 0].long())
    return torch.autograd.grad(loss + sum(x.sum() for x in sums), features)[0]


def mask_losses(logits, labels):
    """Run the mask losses and return the sum of their results."""
    masks, labels = labels.to(torch.uint8)[:, None], labels.long()
    row = torch.arange(len(logits), device=logits.device)
    pairs = mask_pair_sums(logits[:, 0], masks[:, 0], row)
    costs = sum(x.mean() for x in mask_overlaps(logits, masks))
    return (costs + sum(x.mean() for x in pairs) + upsampled_focal_loss(logits, labels)) / labels.numel()


def every_op(features, boxes, kernels, labels, sizes):
    """Run every op that does not wait."""
    found = seed_saliency(features.detach(), (3, 4), similarity="cosine")
    kept = mask_nms(found.masks, found.score, max_masks=5)
    decayed = matrix_nms(found.masks, found.score)
    prompts = roi_average_pool(features, boxes)
    decorated, index = match_prompts(kernels, prompts)
    stages = torch.stack([decorated, decorated * 2])
    loss = kernel_supervision_loss(stages, prompts, index[None, :, : prompts.shape[1]].expand(2, -1, -1))
    points = boxes[:, :, None, None, None, :2].expand(-1, -1, 2, 1, 3, 2) / 20
    value = features.flatten(2).transpose(1, 2).unflatten(2, (2, -1))
    attended = deformable_attention(value, sizes, points, points[..., 0])
    loss = loss + mask_losses(features, labels) + attended.square().mean()
    parts, number = connected_parts(found.masks, max_parts=3)
    taken = take_proposals(found.masks, found.score, found.seeds, kept)
    shapes = found.masks.boxes(), found.masks.area(), parts.words, number, taken.score, taken.count
    packed = PackedMasks.pack(found.masks.unpack()).words
    return loss + decorated.square().sum(), kept, decayed, packed, *shapes


def test_compiled_as_one_graph():
    features = smooth_features(8, 2, 16, 13, 21).cuda().requires_grad_()
    boxes = boxes_of(9, 2, 6, 13, 21).cuda()
    kernels = torch.randn(9, 16, generator=generator(11)).cuda().requires_grad_()
    labels = torch.randint(0, 5, (2, 26, 42), generator=generator(12)).cuda()
    inputs = features, boxes, kernels, labels, torch.tensor([[13, 21]]).cuda()
    torch._dynamo.reset()
    compiled = torch.compile(every_op, fullgraph=True)
    got, expected = compiled(*inputs), every_op(*inputs)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(
        torch.autograd.grad(got[0], (features, kernels)),
        torch.autograd.grad(expected[0], (features, kernels)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
