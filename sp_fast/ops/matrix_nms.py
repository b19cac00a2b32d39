"""Matrix non-maximum suppression of masks (SOLOv2)."""

from __future__ import annotations

import torch
from torch import Tensor

from sp_fast.ops import reference
from sp_fast.ops.checks import FLOATS, check_choice, check_number, check_tensor
from sp_fast.ops.extension import register
from sp_fast.ops.packed_masks import PackedMasks, check_masks


def _fake(words: Tensor, score: Tensor, gaussian: bool, sigma: float) -> Tensor:
    return score.new_empty(score.shape, dtype=torch.float32)


def _reference(words: Tensor, score: Tensor, gaussian: bool, sigma: float) -> Tensor:
    kernel = "gaussian" if gaussian else "linear"
    return reference.matrix_nms(reference.row_masks(words), score, kernel=kernel, sigma=sigma)


_op = register("matrix_nms", _fake, _reference)


def matrix_nms(masks: PackedMasks, score: Tensor, *, kernel: str = "gaussian", sigma: float = 2.0) -> Tensor:
    """Decay scores by the overlap with better masks (Wang et al., SOLOv2, NeurIPS 2020, Sec. 3.3).

    With the masks sorted by descending score (equal scores by ascending index), the score of mask j is
    multiplied by min over i < j of f(iou_ij) / f(max over k < i of iou_ki); f(u) = exp(-sigma u^2) for
    "gaussian", 1 - u for "linear". A NaN score stays NaN, and its mask decays no other.

    Args:
        masks: PackedMasks [B, M].
        score: score of each mask, fp32, fp16 or bf16 [B, M].
        kernel: decay function f, "gaussian" or "linear".
        sigma: decay rate of the gaussian, at least 0.

    Returns:
        Decayed scores, fp32 [B, M], in the order of the input.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong rank, shape, device or value.
    """
    check_masks("masks", masks, 2)
    check_tensor("score", score, tuple(masks.shape), FLOATS, like=masks.words)
    check_choice("kernel", kernel, ("gaussian", "linear"))
    check_number("sigma", sigma, 0)
    return _op(masks.words, score.detach(), kernel == "gaussian", float(sigma))
