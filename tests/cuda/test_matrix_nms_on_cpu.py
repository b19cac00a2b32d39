"""The CUDA kernels of matrix NMS, run on the CPU, against the reference."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sp_fast.ops import PackedMasks, reference
from tests.ops.op_cases import SEEDS, assert_near, generator, masks_and_scores, scattered

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
KERNELS = st.sampled_from(["gaussian", "linear"])


@pytest.fixture
def ops(on_cpu):
    return on_cpu("matrix_nms")


def check(ops, masks, score, kernel="gaussian", sigma=2.0):
    got = ops.matrix_nms(masks.words, score, kernel == "gaussian", sigma)
    assert_near(got, reference.matrix_nms(masks, score, kernel=kernel, sigma=sigma))
    return got


def blobs(seed, batch, number, cells, kinds):
    """Noisy and exact copies of `kinds` random masks, and scores with ties and NaN."""
    random = generator(seed)
    centres = torch.rand(batch, kinds, 1, cells, generator=random) < 0.3
    which = torch.randint(kinds, (batch, number), generator=random)
    noise = torch.rand(batch, number, 1, 1, generator=random).sub(0.3).clamp(min=0) * 0.2
    flips = torch.rand(batch, number, 1, cells, generator=random) < noise
    masks = centres.gather(1, which[:, :, None, None].expand(-1, -1, 1, cells)) ^ flips
    score = torch.randint(1, number + 1, (batch, number), generator=random) / number
    score[torch.rand(batch, number, generator=random) < 0.1] = torch.nan
    return PackedMasks.pack(masks), score


@FEW
@given(masks_and_scores(), KERNELS, st.sampled_from([0.0, 0.5, 2.0]))
def test_few_masks(ops, case, kernel, sigma):
    check(ops, *case, kernel, sigma)


@settings(FEW, max_examples=12)
@given(SEEDS, st.integers(30, 70), st.integers(1, 2300), st.integers(1, 40), KERNELS)
def test_several_tiles(ops, seed, number, cells, kinds, kernel):
    check(ops, *blobs(seed, 1, number, cells, kinds), kernel)


# More tiles than a block has warps; more words than are held at a time, with and without a table.
@pytest.mark.parametrize(("number", "cells"), [(290, 1050), (70, 65 * 32), (70, 3200), (40, 7777)])
@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_sizes(ops, number, cells, kernel):
    check(ops, *blobs(number, 2, number, cells, 20), kernel)


def test_more_masks_than_the_kernel_sorts(ops):
    masks, score = blobs(0, 1, 2100, 20, 40)
    score[torch.rand(score.shape, generator=generator(0)) < 0.98] = torch.nan
    got = ops.matrix_nms(masks.words, score, True, 2.0)
    assert_near(got, torch.ops.sp_fast.matrix_nms(masks.words, score, True, 2.0))


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_all_the_same(ops, kernel):
    masks = PackedMasks.pack(torch.ones(1, 70, 3, 30, dtype=torch.bool))
    got = check(ops, masks, torch.linspace(1, 0.1, 70)[None], kernel)
    assert got[0, 0] == 1


def test_all_scores_are_nan(ops):
    masks = PackedMasks.pack(torch.ones(1, 40, 3, 30, dtype=torch.bool))
    assert check(ops, masks, torch.full((1, 40), torch.nan)).isnan().all()


def test_two_runs_are_equal(ops):
    masks, score = blobs(5, 2, 100, 500, 30)
    first, second = (ops.matrix_nms(masks.words, score, True, 2.0) for _ in range(2))
    assert torch.equal(first.nan_to_num(-1), second.nan_to_num(-1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_strided_and_other_scores(ops, dtype):
    masks, score = blobs(3, 2, 40, 200, 20)
    check(ops, PackedMasks(scattered(masks.words), 1, 200), scattered(score.to(dtype)))


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)])
def test_empty(ops, shape):
    masks = PackedMasks.pack(torch.ones(*shape, 3, 5, dtype=torch.bool))
    assert check(ops, masks, torch.zeros(shape)).shape == shape


def test_masks_without_cells(ops):
    masks = PackedMasks.pack(torch.ones(2, 35, 0, 7, dtype=torch.bool))
    assert (check(ops, masks, torch.ones(2, 35)) == 1).all()


def test_errors(ops):
    words = torch.zeros(1, 2, 3, dtype=torch.int32)
    with pytest.raises(TypeError, match="words: expected dtype int32"):
        ops.matrix_nms(words.float(), torch.zeros(1, 2), True, 2.0)
    with pytest.raises(ValueError, match="score: expected shape"):
        ops.matrix_nms(words, torch.zeros(1, 3), True, 2.0)
