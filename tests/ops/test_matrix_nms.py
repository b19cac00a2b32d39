"""Matrix NMS."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sp_fast.ops import PackedMasks, matrix_nms, reference
from tests.ops.op_cases import assert_near, masks_and_scores, needs_extension


@given(masks_and_scores(), st.sampled_from(["gaussian", "linear"]), st.sampled_from([0.0, 0.5, 2.0]))
def test_equals_the_reference(case, kernel, sigma):
    masks, score = case
    got = matrix_nms(masks, score, kernel=kernel, sigma=sigma)
    assert_near(got, reference.matrix_nms(masks, score, kernel=kernel, sigma=sigma))


def test_only_better_masks_decay_a_score():
    masks = torch.zeros(1, 3, 2, 4, dtype=torch.bool)
    masks[0, 0, 0] = True  # 4 cells
    masks[0, 1, 0, :3] = True  # 3 of those: IoU 0.75
    masks[0, 2, 1] = True  # apart
    score = torch.tensor([[0.5, 0.8, 0.2]])
    packed = PackedMasks.pack(masks)
    assert_near(matrix_nms(packed, score, kernel="linear"), torch.tensor([[0.5 * 0.25, 0.8, 0.2]]))
    decay = torch.tensor(-2 * 0.75**2).exp().item()
    assert_near(matrix_nms(packed, score), torch.tensor([[0.5 * decay, 0.8, 0.2]]))


@pytest.mark.parametrize("kernel", ["gaussian", "linear"])
def test_duplicates_add_no_decay(kernel):
    one = torch.rand(1, 1, 5, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    other = torch.rand(1, 1, 5, 5, generator=torch.Generator().manual_seed(1)) < 0.5
    few = PackedMasks.pack(torch.cat([one, other], 1))
    many = PackedMasks.pack(torch.cat([one, one, one, other], 1))
    got = matrix_nms(many, torch.tensor([[0.9, 0.8, 0.7, 0.6]]), kernel=kernel)
    assert_near(got[:, -1], matrix_nms(few, torch.tensor([[0.9, 0.6]]), kernel=kernel)[:, -1])


def test_nan_score_is_kept_and_decays_no_other():
    masks = PackedMasks.pack(torch.ones(1, 2, 3, 3, dtype=torch.bool))
    got = matrix_nms(masks, torch.tensor([[torch.nan, 0.5]]))
    assert got[0, 0].isnan()
    assert got[0, 1] == 0.5


@pytest.mark.parametrize("shape", [(0, 4), (2, 0)])
def test_empty(shape):
    masks = PackedMasks.pack(torch.ones(*shape, 3, 5, dtype=torch.bool))
    got = matrix_nms(masks, torch.zeros(shape, dtype=torch.float16))
    assert got.shape == shape
    assert got.dtype == torch.float32


MASKS = PackedMasks.pack(torch.ones(2, 3, 4, 5, dtype=torch.bool))
SCORE = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: matrix_nms(SCORE, SCORE), TypeError, "masks: expected PackedMasks"),
        (lambda: matrix_nms(MASKS, SCORE.double()), TypeError, "score: expected dtype float32.*got float64"),
        (lambda: matrix_nms(MASKS, SCORE[0]), ValueError, r"score: expected shape \[2, 3\], got \[3\]"),
        (
            lambda: matrix_nms(MASKS, SCORE, kernel="box"),
            ValueError,
            "kernel: .*'gaussian', 'linear', got 'box'",
        ),
        (lambda: matrix_nms(MASKS, SCORE, sigma=-1.0), ValueError, "sigma: expected a number in"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


@needs_extension
@pytest.mark.parametrize("gaussian", [True, False])
def test_opcheck(gaussian):
    torch.library.opcheck(torch.ops.sp_fast.matrix_nms.default, (MASKS.words, SCORE, gaussian, 2.0))
