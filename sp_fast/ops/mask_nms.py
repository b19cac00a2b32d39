"""Greedy non-maximum suppression of masks."""

from __future__ import annotations

import torch
from torch import Tensor

from sp_fast.ops import reference
from sp_fast.ops.checks import FLOATS, check_int, check_number, check_tensor
from sp_fast.ops.extension import register
from sp_fast.ops.packed_masks import PackedMasks, check_masks


def _fake(words: Tensor, score: Tensor, iou_threshold: float, min_area: int, max_masks: int) -> Tensor:
    return score.new_empty(score.shape[0], max_masks, dtype=torch.int64)


def _reference(words: Tensor, score: Tensor, iou_threshold: float, min_area: int, max_masks: int) -> Tensor:
    return reference.mask_nms(
        reference.row_masks(words), score, iou_threshold=iou_threshold, min_area=min_area, max_masks=max_masks
    )


_op = register("mask_nms", _fake, _reference)


def mask_nms(
    masks: PackedMasks, score: Tensor, *, iou_threshold: float = 0.5, min_area: int = 2, max_masks: int = 20
) -> Tensor:
    """Find the masks that greedy non-maximum suppression keeps.

    Masks are visited by descending score, equal scores by ascending index. A mask is dropped if its IoU
    with a mask already kept is above `iou_threshold`. The IoU of two empty masks is 0.

    Args:
        masks: PackedMasks [B, M].
        score: score of each mask, fp32, fp16 or bf16 [B, M]; masks with a NaN score are never kept.
        iou_threshold: largest IoU allowed between two kept masks, in [0, 1].
        min_area: smallest area of a kept mask, in cells.
        max_masks: largest number of masks to keep per image, at least 1.

    Returns:
        Indices of the kept masks, int64 [B, max_masks], best first, padded with -1.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong rank, shape, device or value.
    """
    check_masks("masks", masks, 2)
    check_tensor("score", score, tuple(masks.shape), FLOATS, like=masks.words)
    check_number("iou_threshold", iou_threshold, 0, 1)
    check_int("min_area", min_area, 0)
    check_int("max_masks", max_masks, 1)
    return _op(masks.words, score.detach(), float(iou_threshold), min_area, max_masks)
