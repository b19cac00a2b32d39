"""Greedy mask NMS."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sp_fast.ops import PackedMasks, mask_nms, reference
from tests.ops.op_cases import masks_and_scores, needs_extension


@given(
    masks_and_scores(),
    st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 2 / 3, 0.75, 1.0]),
    st.integers(0, 5),
    st.integers(1, 15),
)
def test_equals_the_reference(case, iou_threshold, min_area, max_masks):
    masks, score = case
    options = {"iou_threshold": iou_threshold, "min_area": min_area, "max_masks": max_masks}
    got = mask_nms(masks, score, **options)
    assert torch.equal(got, reference.mask_nms(masks, score, **options))


@given(masks_and_scores(), st.sampled_from([0.25, 0.5]))
def test_kept_masks_are_a_greedy_choice(case, iou_threshold):
    masks, score = case
    kept = mask_nms(masks, score, iou_threshold=iou_threshold, min_area=1, max_masks=20)
    cells = masks.unpack().flatten(2)
    for image, row in enumerate(kept):
        chosen = row[row >= 0].tolist()
        assert (row[len(chosen) :] == -1).all()
        assert len(set(chosen)) == len(chosen)
        keys = [(-score[image, m].item(), m) for m in chosen]
        assert keys == sorted(keys)

        def overlap(a, b, image=image):
            union = (cells[image, a] | cells[image, b]).sum().item()
            return (cells[image, a] & cells[image, b]).sum().item() / max(union, 1)

        assert all(overlap(a, b) <= iou_threshold for a in chosen for b in chosen if a != b)
        for m in range(score.shape[1]):
            if m in chosen or score[image, m].isnan() or cells[image, m].sum() < 1:
                continue
            better = [c for c in chosen if (-score[image, c].item(), c) < (-score[image, m].item(), m)]
            assert any(overlap(m, c) > iou_threshold for c in better)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (0, 0)])
def test_empty(shape):
    masks = PackedMasks.pack(torch.ones(*shape, 3, 5, dtype=torch.bool))
    assert mask_nms(masks, torch.zeros(shape), max_masks=3).tolist() == [[-1] * 3] * shape[0]


def test_does_not_depend_on_threads(threads):
    masks = PackedMasks.pack(torch.rand(5, 64, 9, 11) < 0.5)
    score = torch.rand(5, 64)
    results = []
    for number in (1, 2, 3):
        threads(number)
        results.append(mask_nms(masks, score, iou_threshold=0.4))
    assert all(torch.equal(results[0], r) for r in results)


MASKS = PackedMasks.pack(torch.ones(2, 3, 4, 5, dtype=torch.bool))
SCORE = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: mask_nms(MASKS.unpack(), SCORE), TypeError, "masks: expected PackedMasks, got Tensor"),
        (lambda: mask_nms(MASKS[0], SCORE), ValueError, "masks: expected 2 leading dimensions"),
        (lambda: mask_nms(MASKS, SCORE[:, :2]), ValueError, r"score: expected shape \[2, 3\], got \[2, 2\]"),
        (lambda: mask_nms(MASKS, SCORE.long()), TypeError, "score: expected dtype float32.*got int64"),
        (lambda: mask_nms(MASKS, SCORE.to("meta")), ValueError, "score: expected device cpu, got meta"),
        (
            lambda: mask_nms(MASKS, SCORE, iou_threshold=1.5),
            ValueError,
            r"iou_threshold: .*\[0, 1\], got 1.5",
        ),
        (lambda: mask_nms(MASKS, SCORE, iou_threshold=float("nan")), ValueError, "iou_threshold: .*got nan"),
        (lambda: mask_nms(MASKS, SCORE, min_area=-1), ValueError, "min_area: expected an int of at least 0"),
        (lambda: mask_nms(MASKS, SCORE, max_masks=0), ValueError, "max_masks: expected an int of at least 1"),
        (lambda: mask_nms(MASKS, SCORE, max_masks=2.0), TypeError, "max_masks: expected an int, got float"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


@needs_extension
def test_opcheck():
    torch.library.opcheck(torch.ops.sp_fast.mask_nms.default, (MASKS.words, SCORE, 0.5, 2, 4))
