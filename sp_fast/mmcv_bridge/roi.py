"""mmcv's RoI align; RoIs are [R, 5] = (image index, x0, y0, x1, y1) in pixels of the input image.

`spatial_scale` converts them to cells of the feature map.
"""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor

from sp_fast.mmcv_bridge.precision import widen


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoI align of input [B, C, H, W] with average pooling, written to output [R, C, h, w]."""
    _require_average(pool_mode)
    wide = widen(input)
    size = (aligned_height, aligned_width)
    pooled = torchvision.ops.roi_align(
        wide, rois.to(wide.dtype), size, spatial_scale, max(sampling_ratio, 0), aligned
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of `roi_align_forward` with respect to its input, written to grad_input [B, C, H, W]."""
    _require_average(pool_mode)
    grad = widen(grad_output)
    gradient = torch.ops.torchvision._roi_align_backward(
        grad,
        rois.to(grad.dtype),
        spatial_scale,
        aligned_height,
        aligned_width,
        *grad_input.shape,
        max(sampling_ratio, 0),
        aligned,
    )
    grad_input.copy_(gradient)


def _require_average(pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError(
            "mmcv op 'roi_align' with pool_mode='max' is not in sp_fast's mmcv bridge; use pool_mode='avg', "
            "or install a full mmcv 2.1.0 built for this PyTorch in place of mmcv-lite"
        )
