"""Inputs, calls and expected results of the tests on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sp_fast import ops
from sp_fast.ops import PackedMasks, deformable_reference, mask_sums_reference, reference
from sp_fast.ops.take_proposals import take_proposals
from tests.ops.deformable_cases import inside_cells
from tests.ops.op_cases import generator, scattered

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LAYOUTS = ["contiguous", "channels_last", "scattered"]

# Tolerance against the reference in fp64: two roundings of the result; for fp32, sums in another order.
ON_GPU = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@contextmanager
def without_waiting():
    """Make it an error if the host waits for the device."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def poison() -> None:
    """Fill free blocks of the allocator with NaN, so that elements an op leaves unwritten show."""
    sizes = [2**k for k in range(9, 25)] + [3 * 2**k for k in range(9, 23)]
    blocks = [torch.full((size // 4,), torch.nan, device="cuda") for size in sizes for _ in range(3)]
    del blocks


def in_layout(x: Tensor, layout: str) -> Tensor:
    """Lay out the values of x in memory as named; only maps can be channels-last."""
    if layout == "scattered":
        return scattered(x)
    return (
        x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" and x.dim() == 4 else x
    )


@dataclass(frozen=True)
class Case:
    """One op and inputs for it.

    Attributes:
        inputs: (seed, dtype) -> inputs on the CPU.
        op: inputs -> results.
        reference: the same function in `sp_fast.ops.reference`.
        wanted: number of leading inputs that get gradients.
        atomic: whether gradients are summed by atomic additions: their last bits differ from run to run, and
            their errors are relative to the largest.
    """

    inputs: Callable[[int, torch.dtype], Sequence[Tensor]]
    op: Callable[..., Any]
    reference: Callable[..., Any]
    wanted: int = 0
    atomic: bool = False


def results(function: Callable[..., Any], inputs: Sequence[Tensor], wanted: int = 0) -> list[Tensor]:
    """Results, and the gradients of the first `wanted` inputs for a fixed gradient of the first result."""
    leaves = [x.detach().requires_grad_() for x in inputs[:wanted]]
    found = function(*leaves, *inputs[wanted:])
    found = list(found) if isinstance(found, tuple) else [found]
    if wanted:
        # A gradient that varies by element and is exact in every dtype, without random numbers.
        place = torch.arange(found[0].numel(), device=found[0].device).reshape(found[0].shape)
        gradient = ((place * 37 % 101).to(found[0].dtype) - 50) / 64
        found += torch.autograd.grad(found[0], leaves, gradient, materialize_grads=True)
    return [x.detach() for x in found]


def on_gpu(case: Case, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Run the op on inputs on the GPU, in poisoned memory and without synchronisation."""
    poison()
    with without_waiting():
        return results(case.op, inputs, case.wanted)


def to_gpu(inputs: Sequence[Tensor], layout: str = "contiguous") -> list[Tensor]:
    """Copy the inputs to the GPU."""
    return [in_layout(x.cuda(), layout) for x in inputs]


def expected_results(case: Case, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Results of the reference on the CPU; differentiable ops run in fp64."""
    if case.wanted:
        inputs = [x.double() if x.is_floating_point() else x for x in inputs]
    return results(case.reference, inputs, case.wanted)


def assert_expected(got: Sequence[Tensor], expected: Sequence[Tensor], relative: bool = False) -> None:
    """Check that integers are equal, and floats within the tolerance of the dtype on the GPU.

    `relative`: the tolerance is relative to the largest value of a result.
    """
    for one, other in zip(got, expected, strict=True):
        assert one.is_cuda
        assert one.shape == other.shape
        if other.is_floating_point():
            tolerance, other = ON_GPU[one.dtype], other.double()
            scale = max(1.0, other.abs().max().item()) if relative and other.numel() else 1.0
            one = one.cpu().double() / scale
            torch.testing.assert_close(one, other / scale, rtol=tolerance, atol=tolerance)
        else:
            assert torch.equal(one.cpu(), other)


def assert_same(case: Case, got: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Check that two runs agree: to the bit, but for sums by atomic additions."""
    if case.atomic:
        assert_expected(got, [x.cpu() for x in expected], relative=True)
    else:
        for one, other in zip(got, expected, strict=True):
            assert torch.equal(one, other)


def smooth_features(seed: int, batch: int, channels: int, height: int, width: int) -> Tensor:
    """Spatially smooth features, fp32, like those of a backbone."""
    random = generator(seed)
    coarse = torch.randn(batch, channels, -(-height // 6) + 1, -(-width // 6) + 1, generator=random)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    return (smooth + 0.3 * torch.randn(smooth.shape, generator=random)).relu()


def blobs(seed: int, batch: int, number: int, height: int, width: int) -> tuple[PackedMasks, Tensor]:
    """Overlapping masks and scores: some masks and scores are equal, one mask is empty, one score NaN."""
    random = generator(seed)
    size = torch.tensor([height, width])
    centre = torch.rand(batch, number, 2, 1, 1, generator=random) * size[:, None, None]
    radius = (0.1 + 0.4 * torch.rand(batch, number, 2, 1, 1, generator=random)) * size[:, None, None]
    y = (torch.arange(height)[:, None] - centre[:, :, 0]) / radius[:, :, 0]
    x = (torch.arange(width) - centre[:, :, 1]) / radius[:, :, 1]
    masks = y.square() + x.square() <= 1
    score = torch.rand(batch, number, generator=random)
    if number > 4:
        masks[:, 1], masks[:, 2] = masks[:, 0], False
        score[:, 3], score[:, 4] = score[:, 0], torch.nan
    return PackedMasks.pack(masks), score


def boxes_of(seed: int, batch: int, number: int, height: int, width: int) -> Tensor:
    """Boxes (xyxy, in cells): inside, partly or entirely outside, empty, reversed, or with NaN."""
    random = generator(seed)
    size = torch.tensor([width, height])
    low = (torch.rand(batch, number, 2, generator=random) * 1.2 - 0.1) * size
    boxes = torch.cat([low, low + torch.rand(batch, number, 2, generator=random) * 0.7 * size], -1)
    for place, odd in enumerate(
        ([-9.0, -9, -3, -3], [2.0, 3, 2, 3], [9.0, 7, 1, 2], [torch.nan, 0, 4, torch.nan], [0.0, 0, 1e9, 1e9])
    ):
        if number > 2 * place + 1:
            boxes[:, 2 * place + 1] = torch.tensor(odd)
    return boxes


def _saliency_inputs(seed: int, dtype: torch.dtype) -> Sequence[Tensor]:
    valid = torch.tensor([[13, 21], [10, 8]])
    return smooth_features(seed, 2, 40, 13, 21).to(dtype), valid


def _masks_inputs(seed: int, dtype: torch.dtype) -> Sequence[Tensor]:
    masks, score = blobs(seed, 2, 130, 13, 21)
    return masks.words, score.to(dtype)


def _as_masks(words: Tensor) -> PackedMasks:
    return PackedMasks(words, 13, 21)


def _parts_inputs(seed: int, dtype: torch.dtype) -> Sequence[Tensor]:
    density = torch.linspace(0, 1, 130)[:, None, None]
    return [PackedMasks.pack(torch.rand(2, 130, 13, 21, generator=generator(seed)) < density).words]


def _parts(of: Any) -> Callable[..., Any]:
    def call(words: Tensor) -> tuple[Tensor, ...]:
        parts, count = of.connected_parts(_as_masks(words), max_parts=5, min_area=2)
        return parts.words, count

    return call


def _pooling_inputs(seed: int, dtype: torch.dtype) -> Sequence[Tensor]:
    features = torch.randn(2, 40, 13, 21, generator=generator(seed)).to(dtype)
    return features, boxes_of(seed, 2, 17, 13, 21), torch.tensor([17, 9])


def _matching_inputs(seed: int, dtype: torch.dtype) -> Sequence[Tensor]:
    random = generator(seed)
    kernels, prompts = torch.randn(2, 33, 72, generator=random), torch.randn(2, 17, 72, generator=random)
    return kernels.to(dtype), prompts.to(dtype), torch.tensor([17, 5])


def _supervision_inputs(seed: int, dtype: torch.dtype) -> Sequence[Tensor]:
    random = generator(seed)
    kernels, targets = torch.randn(3, 2, 33, 72, generator=random), torch.randn(2, 17, 72, generator=random)
    return kernels.to(dtype), targets.to(dtype), torch.randint(-1, 33, (3, 2, 17), generator=random)


def _image_masks(seed: int, dtype: torch.dtype) -> Sequence[Tensor]:
    random = generator(seed)
    logits = 4 * torch.randn(2, 33, 13, 21, generator=random)
    return logits.to(dtype), torch.randint(0, 5, (2, 35, 26, 42), generator=random, dtype=torch.uint8)


def _mask_pairs(seed: int, dtype: torch.dtype) -> Sequence[Tensor]:
    logits, masks = _image_masks(seed, dtype)
    rows = torch.randint(0, 70, (66,), generator=generator(seed))
    return logits.flatten(0, 1), masks.flatten(0, 1), rows


def _class_maps(seed: int, dtype: torch.dtype) -> Sequence[Tensor]:
    logits, _ = _image_masks(seed, dtype)
    return logits, torch.randint(0, 40, (2, 26, 42), generator=generator(seed))


def _pair_sums(of: Any) -> Callable[..., Any]:
    return lambda logits, masks, row: torch.stack(of.mask_pair_sums(logits, masks, row)[:3])


def _attention_inputs(seed: int, dtype: torch.dtype) -> Sequence[Tensor]:
    numbers = {"batch": 2, "queries": 70, "heads": 3, "points": 4, "depth": 20}
    value, sizes, *others = inside_cells([(4, 5), (7, 9), (14, 18)], generator(seed), dtype=dtype, **numbers)
    return value, *others, sizes


def _attention(of: Any) -> Callable[..., Any]:
    return lambda value, locations, weights, sizes: of.deformable_attention(value, sizes, locations, weights)


def _taken_inputs(seed: int, dtype: torch.dtype) -> Sequence[Tensor]:
    words, score = _masks_inputs(seed, torch.float32)
    random = generator(seed)
    seeds = torch.randn(2, 130, 72, generator=random).to(dtype)
    return words, score.nan_to_num(), seeds, torch.randint(-1, 131, (2, 20), generator=random)


def _take(words: Tensor, score: Tensor, seeds: Tensor, chosen: Tensor) -> tuple[Tensor, ...]:
    masks, *others = take_proposals(_as_masks(words), score, seeds, chosen)
    return masks.words, *others


def _saliency(of: Any) -> Callable[..., Any]:
    def call(features: Tensor, valid: Tensor) -> tuple[Tensor, ...]:
        found = of.seed_saliency(features, [(3, 4), (2, 2)], valid=valid, similarity="cosine")
        return found.masks.words, found.score, found.seeds

    return call


# Every op that does not wait, by name, at a small odd size.
CASES = {
    "seed_saliency": Case(_saliency_inputs, _saliency(ops), _saliency(reference)),
    "connected_parts": Case(_parts_inputs, _parts(ops), _parts(reference)),
    "deformable_attention": Case(
        _attention_inputs, _attention(ops), _attention(deformable_reference), wanted=3, atomic=True
    ),
    "mask_nms": Case(
        _masks_inputs,
        lambda words, score: ops.mask_nms(_as_masks(words), score),
        lambda words, score: reference.mask_nms(_as_masks(words), score),
    ),
    "mask_overlaps": Case(
        _image_masks, ops.mask_overlaps, lambda x, masks: mask_sums_reference.mask_overlaps(x.double(), masks)
    ),
    "mask_pair_sums": Case(_mask_pairs, _pair_sums(ops), _pair_sums(mask_sums_reference), wanted=1),
    "matrix_nms": Case(
        _masks_inputs,
        lambda words, score: ops.matrix_nms(_as_masks(words), score).nan_to_num(),
        lambda words, score: reference.matrix_nms(_as_masks(words), score).nan_to_num(),
    ),
    "packed_masks": Case(
        _masks_inputs,
        lambda words, _: (
            _as_masks(words).area(),
            _as_masks(words).boxes(),
            PackedMasks.pack(_as_masks(words).unpack()).words,
        ),
        lambda words, _: (_as_masks(words).area(), _as_masks(words).boxes(), words),
    ),
    "take_proposals": Case(_taken_inputs, _take, reference.take_proposals),
    "roi_average_pool": Case(_pooling_inputs, ops.roi_average_pool, reference.roi_average_pool, wanted=1),
    "match_prompts": Case(_matching_inputs, ops.match_prompts, reference.match_prompts, wanted=2),
    "kernel_supervision_loss": Case(
        _supervision_inputs, ops.kernel_supervision_loss, reference.kernel_supervision_loss, wanted=2
    ),
    "upsampled_focal_loss": Case(
        _class_maps,
        ops.upsampled_focal_loss,
        lambda x, labels: mask_sums_reference.upsampled_focal_loss(x, labels, 0.25),
        wanted=1,
    ),
}

# Ops that are not in CASES, and why.
NOT_IN_CASES = {
    "mask_runs": "its result's size is known on the device only; it has a test of its own",
    "compress_runs": "called on the CPU only",
    "sample_runs": "called on the CPU only",
}
