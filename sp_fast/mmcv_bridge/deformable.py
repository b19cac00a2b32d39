"""mmcv's multi-scale deformable attention."""

from __future__ import annotations

import torch
from torch import Tensor


def ms_deform_attn_forward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Multi-scale deformable attention (Deformable DETR, Eq. 3): [B, Q, heads * D].

    value [B, keys, heads, D]; spatial_shapes int [levels, 2], height and width; sampling_locations
    [B, Q, heads, levels, points, 2], x and y in [0, 1]; attention_weights [B, Q, heads, levels, points].
    """
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    # A list costs one transfer from the device, a tensor one per use.
    shapes = spatial_shapes.tolist()
    return multi_scale_deformable_attn_pytorch(value, shapes, sampling_locations, attention_weights)


def ms_deform_attn_backward(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Gradients of `ms_deform_attn_forward`, written to the grad_ tensors."""
    value, locations, weights = (
        tensor.detach().requires_grad_() for tensor in (value, sampling_locations, attention_weights)
    )
    with torch.enable_grad():
        output = ms_deform_attn_forward(
            value, spatial_shapes, level_start_index, locations, weights, im2col_step
        )
    gradients = torch.autograd.grad(output, (value, locations, weights), grad_output)
    for target, gradient in zip((grad_value, grad_sampling_loc, grad_attn_weight), gradients, strict=True):
        target.copy_(gradient)
