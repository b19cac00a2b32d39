"""mmcv's deformable convolutions and multi-scale deformable attention."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor

from sp_fast.mmcv_bridge.precision import widen


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Deformable convolution (v1), input [B, Cin, H, W], into output [B, Cout, h, w]."""
    geometry = (dH, dW), (padH, padW), (dilationH, dilationW)
    output.copy_(torchvision.ops.deform_conv2d(widen(input), widen(offset), widen(weight), None, *geometry))


def _deform_conv_gradients(
    grad_output: Tensor,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    geometry: tuple[int, int, int, int, int, int],
    group: int,
    deformable_group: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients in input, weight, offset, mask and bias.

    geometry: stride, padding and dilation, each height before width.
    """
    bias = weight.new_zeros(weight.shape[0])
    use_mask = mask is not None
    mask = input.new_zeros(input.shape[0], 1) if mask is None else mask
    return torch.ops.torchvision._deform_conv2d_backward(
        *map(widen, (grad_output, input, weight, offset, mask, bias)),
        *geometry,
        group,
        deformable_group,
        use_mask,
    )


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_input: Tensor,
    grad_offset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Gradients of `deform_conv_forward` in input and offset, into grad_input and grad_offset."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW)
    gradients = _deform_conv_gradients(
        grad_output, input, weight, offset, None, geometry, group, deformable_group
    )
    grad_input.copy_(gradients[0])
    grad_offset.copy_(gradients[2])


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    grad_output: Tensor,
    grad_weight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Gradient of `deform_conv_forward` in weight, times scale, into grad_weight."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW)
    gradients = _deform_conv_gradients(
        grad_output, input, grad_weight, offset, None, geometry, group, deformable_group
    )
    grad_weight.copy_(gradients[1] * scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Modulated deformable convolution (v2), input [B, Cin, H, W], into output [B, Cout, h, w]."""
    convolved = torchvision.ops.deform_conv2d(
        widen(input),
        widen(offset),
        widen(weight),
        widen(bias) if with_bias else None,
        (stride_h, stride_w),
        (pad_h, pad_w),
        (dilation_h, dilation_w),
        widen(mask),
    )
    output.copy_(convolved)


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Gradients of `modulated_deform_conv_forward` in its five tensors, into the grad_ tensors."""
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w)
    gradients = _deform_conv_gradients(
        grad_output, input, weight, offset, mask, geometry, group, deformable_group
    )
    targets = [grad_input, grad_weight, grad_offset, grad_mask]
    for target, gradient in zip(targets, gradients[:4], strict=True):
        target.copy_(gradient)
    if with_bias:
        grad_bias.copy_(gradients[4])


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

    # As a list the shapes cost one transfer from the device, as a tensor one for every use.
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
    """Gradients of `ms_deform_attn_forward` in value, locations and weights, into the grad_ tensors."""
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
