"""Average of a feature map inside boxes (Eq. 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from sp_fast.ops import gradients, reference
from sp_fast.ops.checks import FLOATS_AND_DOUBLE, INTS, check_map, check_tensor, check_values
from sp_fast.ops.extension import register


def _fake(features: Tensor, boxes: Tensor, count: Tensor | None) -> Tensor:
    return features.new_empty(features.shape[0], boxes.shape[1], features.shape[1])


def _reference(features: Tensor, boxes: Tensor, count: Tensor | None) -> Tensor:
    check_values("count", count, 0, boxes.shape[1])
    return reference.roi_average_pool(features, boxes, count)


def _fake_backward(
    grad: Tensor, boxes: Tensor, count: Tensor | None, height: int, width: int, channels_last: bool
) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (grad.shape[0], grad.shape[2], height, width)
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=layout)


_op = register("roi_average_pool", _fake, _reference)
register("roi_average_pool_backward", _fake_backward, gradients.roi_average_pool_backward)


def roi_average_pool(features: Tensor, boxes: Tensor, count: Tensor | None = None) -> Tensor:
    """Average the features inside each box (Eq. 5 of Saliency Prompt, CVPR 2023).

    The average is over the cells floor(x0) .. ceil(x1) - 1 and floor(y0) .. ceil(y1) - 1, clamped to the
    map and to at least one cell; a NaN coordinate counts as 0. Differentiable in `features`; the backward
    pass is deterministic.

    Args:
        features: feature maps, fp32, fp16, bf16 or fp64 [B, C, H, W].
        boxes: boxes (xyxy, in cells of the map), fp32, fp16, bf16 or fp64 [B, L, 4].
        count: number of real boxes per image, int32 or int64 [B], in [0, L]; the rest is padding and gives
            zeros. None: no padding.

    Returns:
        Averages [B, L, C] in the dtype of `features`.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong rank, shape, device or value.
    """
    check_tensor("features", features, ("B", "C", "H", "W"), FLOATS_AND_DOUBLE)
    check_map("features", features)
    batch = features.shape[0]
    check_tensor("boxes", boxes, (batch, "L", 4), FLOATS_AND_DOUBLE, like=features)
    if count is not None:
        check_tensor("count", count, (batch,), INTS, like=features)
    return _op(features, boxes.detach(), count)
