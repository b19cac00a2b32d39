"""The CUDA kernels of mask NMS, run on the CPU, against the reference."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sp_fast.ops import PackedMasks, reference
from tests.ops.op_cases import SEEDS, generator, masks_and_scores, scattered

FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
THRESHOLDS = st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 2 / 3, 0.75, 1.0])


@pytest.fixture
def ops(on_cpu):
    return on_cpu("mask_nms")


def check(ops, masks, score, iou_threshold=0.5, min_area=2, max_masks=20):
    got = ops.mask_nms(masks.words, score, iou_threshold, min_area, max_masks)
    expected = reference.mask_nms(
        masks, score, iou_threshold=iou_threshold, min_area=min_area, max_masks=max_masks
    )
    assert torch.equal(got, expected)
    return got


def blobs(seed, batch, number, height, width, kinds):
    """Noisy copies of `kinds` random masks, and scores with ties."""
    random = generator(seed)
    centres = torch.rand(batch, kinds, height, width, generator=random) < 0.3
    which = torch.randint(kinds, (batch, number), generator=random)
    noise = torch.rand(batch, number, 1, 1, generator=random) * 0.15
    flips = torch.rand(batch, number, height, width, generator=random) < noise
    masks = centres.gather(1, which[:, :, None, None].expand(-1, -1, height, width)) ^ flips
    score = torch.randint(max(number, 1), (batch, number), generator=random) / max(number, 1)
    return PackedMasks.pack(masks), score


@FEW
@given(masks_and_scores(), THRESHOLDS, st.integers(0, 5), st.integers(1, 15))
def test_few_masks(ops, case, iou_threshold, min_area, max_masks):
    check(ops, *case, iou_threshold, min_area, max_masks)


@FEW
@given(
    SEEDS,
    st.integers(17, 90),
    st.integers(1, 5),
    st.integers(1, 200),
    st.integers(1, 60),
    THRESHOLDS,
    st.integers(1, 100),
)
def test_several_rounds(ops, seed, number, height, width, kinds, iou_threshold, max_masks):
    check(ops, *blobs(seed, 1, number, height, width, kinds), iou_threshold, 2, max_masks)


@pytest.mark.parametrize("kinds", [1, 12, 200])
def test_the_usual_size(ops, kinds):
    masks, score = blobs(kinds, 2, 256, 25, 42, kinds)
    kept = check(ops, masks, score)
    assert (kept >= 0).sum() > 1


def test_all_are_kept(ops):
    cells = torch.eye(140, dtype=torch.bool)[None, :, None]
    score = torch.rand(1, 140, generator=generator(0))
    kept = check(ops, PackedMasks.pack(cells), score, min_area=0, max_masks=150)
    assert (kept[0] >= 0).sum() == 140


@pytest.mark.parametrize("whole", [10, 23, 2900])
def test_iou_at_the_threshold(ops, whole):
    """IoUs p / q against the adjacent thresholds are decided in fp64, like in the reference."""
    for part in range(1, whole, max(whole // 12, 1)):
        cells = torch.arange(whole) < torch.tensor([whole, part])[None, :, None]
        masks, score = PackedMasks.pack(cells[:, :, None]), torch.tensor([[1.0, 0.5]])
        iou = part / whole
        assert check(ops, masks, score, iou, 1, 2).tolist() == [[0, 1]]
        below = math.nextafter(iou, 0)
        assert check(ops, masks, score, below, 1, 2).tolist() == [[0, -1]]


# One or several runs of the sort; missing keys past the end of the last run must stay there.
@pytest.mark.parametrize("number", [1, 127, 128, 129, 257, 520])
def test_order(ops, number):
    random = generator(number)
    score = torch.randn(1, number, generator=random)
    score[0, torch.rand(number, generator=random) < 0.1] = torch.nan
    score[0, torch.rand(number, generator=random) < 0.2] = -0.0
    score[0, torch.rand(number, generator=random) < 0.2] = 0.0
    masks = PackedMasks.pack(torch.ones(1, number, 1, 1, dtype=torch.bool))
    check(ops, masks, score, 1.0, 1, number)  # all are kept


@pytest.mark.parametrize("number", [64, 640])
def test_many_masks_gone_at_once(ops, number):
    masks = torch.zeros(1, number, 3, 40, dtype=torch.bool)
    masks[:, :, 0] = True
    masks[:, -1] = ~masks[:, -1]
    masks[:, 33] = False
    check(ops, PackedMasks.pack(masks), torch.linspace(1, 0, number)[None], max_masks=3)


# More masks than fit in shared memory; more words than masks; more masks than the kernel sorts.
@pytest.mark.parametrize(("number", "cells"), [(460, 4100), (100, 20000), (33, 57000), (8200, 20)])
def test_large(ops, number, cells):
    masks, score = blobs(number, 1, number, 1, cells, 30)
    score[0, :: number // 9] = torch.nan
    if number < 1000:
        check(ops, masks, score, max_masks=40)
        return
    # Too many pairs for the reference, so compare with the op on the CPU.
    got = ops.mask_nms(masks.words, score, 0.5, 2, 60)
    assert torch.equal(got, torch.ops.sp_fast.mask_nms(masks.words, score, 0.5, 2, 60))


@pytest.mark.parametrize("offset", [1, 2, 3])
@pytest.mark.parametrize("cells", [33 * 32, 3 * 32, 4 * 32])
def test_misaligned_words(ops, offset, cells):
    masks, score = blobs(0, 2, 21, 1, cells, 9)
    words = torch.zeros(offset + masks.words.numel(), dtype=torch.int32)
    words[offset:] = masks.words.flatten()
    shifted = PackedMasks(words[offset:].view(masks.words.shape), 1, cells)
    check(ops, shifted, score)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_strided_and_other_scores(ops, dtype):
    masks, score = blobs(3, 2, 40, 5, 40, 20)
    check(ops, PackedMasks(scattered(masks.words), 5, 40), scattered(score.to(dtype)))


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (0, 0)])
def test_empty(ops, shape):
    masks = PackedMasks.pack(torch.ones(*shape, 3, 5, dtype=torch.bool))
    assert check(ops, masks, torch.zeros(shape), max_masks=3).tolist() == [[-1] * 3] * shape[0]


def test_masks_without_cells(ops):
    masks = PackedMasks.pack(torch.ones(2, 5, 0, 7, dtype=torch.bool))
    assert check(ops, masks, torch.ones(2, 5), min_area=0, max_masks=4)[0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("words", "score", "error", "message"),
    [
        (torch.zeros(1, 2, 3), torch.zeros(1, 2), TypeError, "words: expected dtype int32"),
        (torch.zeros(1, 2, 3, dtype=torch.int32), torch.zeros(1, 3), ValueError, "score: expected shape"),
        (
            torch.zeros(1, 2, 3, dtype=torch.int32),
            torch.zeros(1, 2).int(),
            TypeError,
            "score: expected dtype",
        ),
    ],
)
def test_errors(ops, words, score, error, message):
    with pytest.raises(error, match=message):
        ops.mask_nms(words, score, 0.5, 2, 4)
