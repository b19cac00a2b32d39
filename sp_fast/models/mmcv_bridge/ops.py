"""Ops of `mmcv._ext` (mmcv 2.1.0), with the signatures by which mmcv's Python code calls them.

As there, most write into tensors that the caller has allocated. Boxes are xyxy in pixels; RoIs are
[R, 5] = (image index, x0, y0, x1, y1) in pixels of the input image, scaled by `spatial_scale` to the
feature map. float16 and bfloat16 are computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor

__all__ = [
    "deform_conv_backward_input",
    "deform_conv_backward_parameters",
    "deform_conv_forward",
    "get_compiler_version",
    "get_compiling_cuda_version",
    "modulated_deform_conv_backward",
    "modulated_deform_conv_forward",
    "ms_deform_attn_backward",
    "ms_deform_attn_forward",
    "nms",
    "roi_align_backward",
    "roi_align_forward",
    "roi_pool_backward",
    "roi_pool_forward",
    "sigmoid_focal_loss_backward",
    "sigmoid_focal_loss_forward",
    "softnms",
]


def unavailable_op(name: str) -> Callable[..., Any]:
    """An op that raises NotImplementedError, naming itself and the way out, when it is called."""
    if name.startswith("_"):
        raise AttributeError(f"module 'mmcv._ext' has no attribute {name!r}")

    def op(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            f"mmcv op {name!r} needs mmcv's compiled extension, which is not installed; sp_fast's bridge gives "
            f"only {', '.join(__all__)}. To use it, replace mmcv-lite by a full mmcv 2.1.0 built for this PyTorch: "
            "pip uninstall mmcv-lite, then https://mmcv.readthedocs.io/en/v2.1.0/get_started/build.html"
        )

    op.__name__ = op.__qualname__ = name
    return op


def get_compiler_version() -> str:
    """What stands in for the compiler's name in mmcv's environment report."""
    return f"none (sp_fast's bridge to torchvision {torchvision.__version__})"


def get_compiling_cuda_version() -> str:
    """The CUDA version of the PyTorch build whose ops are used."""
    return str(torch.version.cuda)


def _wide(tensor: Tensor) -> Tensor:
    """The tensor, contiguous, in float32 when it is of lower precision (torchvision has no CPU kernels for those)."""
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    return (tensor.float() if half else tensor).contiguous()


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices int64 [K] of the boxes [N, 4] that greedy NMS keeps, by descending score.

    A box goes when its IoU with a kept one is above iou_threshold; widths are x1 - x0 + offset.
    """
    boxes = _wide(boxes)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torchvision.ops.nms(boxes, _wide(scores).to(boxes.dtype), iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (Bodla et al., ICCV 2017): indices int64 [K]; dets[:K] = (x0, y0, x1, y1, decayed score).

    The best remaining box is taken, each other's score is multiplied by a weight of its IoU u with it, and those
    that fall under min_score are dropped. Weight: method 0 (hard) 0 and 1 (linear) 1 - u where u >= iou_threshold,
    else 1; method 2 (gaussian) exp(-u^2 / sigma).
    """
    corners = boxes.float() + boxes.new_tensor([0, 0, offset, offset]).float()
    remaining = torch.arange(len(boxes), device=boxes.device)
    score = scores.float().clone()
    kept: list[Tensor] = []
    while len(remaining):
        best = int(score.argmax())
        dets[len(kept), :4] = boxes[remaining[best]]
        dets[len(kept), 4] = score[best]
        kept.append(remaining[best])

        others = torch.arange(len(remaining), device=boxes.device) != best
        iou = _iou_with(corners[remaining[best]], corners[remaining[others]])
        if method == 2:
            weight = torch.exp(-(iou**2) / sigma)
        else:
            reduced = torch.zeros_like(iou) if method == 0 else 1 - iou
            weight = torch.where(iou >= iou_threshold, reduced, torch.ones_like(iou))
        decayed = score[others] * weight
        above = decayed >= min_score
        remaining, score = remaining[others][above], decayed[above]
    return torch.stack(kept) if kept else remaining


def _iou_with(box: Tensor, boxes: Tensor) -> Tensor:
    # torchvision.ops.box_iou is 0 / 0 for two empty boxes; mmcv compares such a NaN, which is never above.
    return torchvision.ops.box_iou(box[None], boxes)[0].nan_to_num(0.0)


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
    """RoI align of input [B, C, H, W] with average pooling, into output [R, C, h, w]."""
    _require_average(pool_mode)
    wide = _wide(input)
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
    """Gradient of `roi_align_forward` in its input, into grad_input [B, C, H, W]."""
    _require_average(pool_mode)
    grad = _wide(grad_output)
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
            "mmcv op 'roi_align': pool_mode 'max' is not in sp_fast's mmcv bridge; use pool_mode='avg', or install "
            "a full mmcv 2.1.0 built for this PyTorch in place of mmcv-lite"
        )


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Max over each RoI's bins of input [B, C, H, W], into output [R, C, h, w]; argmax int32 of that shape.

    A RoI spans x0 * scale to (x1 + 1) * scale, unrounded (torchvision's roi_pool rounds), and a bin the cells from
    the floor of its start to the ceiling of its end. An empty bin gives 0 and argmax -1, else argmax = y W + x.
    """
    height, width = input.shape[-2:]
    output.zero_()
    argmax.fill_(-1)
    extents = rois[:, 1:].double()
    extents = torch.cat([extents[:, :2], extents[:, 2:] + 1], dim=1) * spatial_scale  # [R, 4]
    for row, (image, extent) in enumerate(zip(rois[:, 0].tolist(), extents.tolist(), strict=True)):
        x0, y0, x1, y1 = extent
        if x1 <= x0 or y1 <= y0:
            continue
        in_columns = _bins(x0, x1, pooled_width, width, input.device)  # [w, W]
        in_rows = _bins(y0, y1, pooled_height, height, input.device)  # [h, H]
        lowest = -torch.inf
        per_row, column = input[int(image), :, :, None, :].masked_fill(~in_columns, lowest).max(dim=-1)  # [C, H, w]
        per_row, column = per_row.transpose(1, 2), column.transpose(1, 2)  # [C, w, H]
        best, y = per_row[:, None].masked_fill(~in_rows[:, None], lowest).max(dim=-1)  # [C, h, w]
        x = column[:, None].expand(-1, pooled_height, -1, -1).gather(-1, y[..., None])[..., 0]
        occupied = in_rows.any(1)[:, None] & in_columns.any(1)  # [h, w]
        output[row] = torch.where(occupied, best, torch.zeros_like(best))
        argmax[row] = torch.where(occupied, y * width + x, torch.full_like(y, -1)).to(argmax.dtype)


def _bins(start: float, end: float, bins: int, length: int, device: torch.device) -> Tensor:
    """Bool [bins, length]: which cells of a row of `length` lie in each of the bins of [start, end)."""
    edges = start + torch.arange(bins + 1, dtype=torch.float64, device=device) * ((end - start) / bins)
    cells = torch.arange(length, device=device)
    return (cells >= edges[:-1, None].floor()) & (cells < edges[1:, None].ceil())


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Gradient of `roi_pool_forward` in its input, into grad_input [B, C, H, W] (zeros on entry)."""
    batch, channels, height, width = grad_input.shape
    plane = rois[:, :1].long() * channels + torch.arange(channels, device=rois.device)  # [R, C]
    cell = plane[..., None, None] * (height * width) + argmax.clamp(min=0)  # [R, C, h, w]
    flat = _wide(grad_input).flatten()
    flat = flat.index_add(0, cell.flatten(), (_wide(grad_output) * (argmax >= 0)).flatten())
    grad_input.copy_(flat.view(batch, channels, height, width))


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
    output.copy_(torchvision.ops.deform_conv2d(_wide(input), _wide(offset), _wide(weight), None, *geometry))


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
    """Gradients in input, weight, offset, mask and bias; geometry: stride, padding, dilation, each height, width."""
    bias = weight.new_zeros(weight.shape[0])
    use_mask = mask is not None
    mask = input.new_zeros(input.shape[0], 1) if mask is None else mask
    return torch.ops.torchvision._deform_conv2d_backward(
        *map(_wide, (grad_output, input, weight, offset, mask, bias)),
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
        _wide(input),
        _wide(offset),
        _wide(weight),
        _wide(bias) if with_bias else None,
        (stride_h, stride_w),
        (pad_h, pad_w),
        (dilation_h, dilation_w),
        _wide(mask),
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
    leaves = [t.detach().requires_grad_() for t in (value, sampling_locations, attention_weights)]
    with torch.enable_grad():
        output = ms_deform_attn_forward(leaves[0], spatial_shapes, level_start_index, *leaves[1:], im2col_step)
    gradients = torch.autograd.grad(output, leaves, grad_output)
    for target, gradient in zip((grad_value, grad_sampling_loc, grad_attn_weight), gradients, strict=True):
        target.copy_(gradient)


def _class_weight(target: Tensor, weight: Tensor, classes: int) -> Tensor | float:
    """weight[target] as [N, 1]; 1 for background, whose target is `classes`, and without weights."""
    if weight.numel() == 0:
        return 1.0
    return torch.cat([weight, weight.new_ones(1)])[target.clamp(max=classes)][:, None]


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Sigmoid focal loss (Lin et al., ICCV 2017), into output [N, C].

    -alpha (1 - p)^gamma log p at the target class, -(1 - alpha) p^gamma log(1 - p) elsewhere, times weight[target];
    input: logits [N, C]; target: int64 [N], C for background; weight: [C] or empty.
    """
    logits = _wide(input)
    p = logits.sigmoid()
    positive = F.one_hot(target, input.shape[1] + 1)[:, :-1].bool()
    loss = torch.where(
        positive,
        -alpha * (1 - p) ** gamma * F.logsigmoid(logits),
        -(1 - alpha) * p**gamma * F.logsigmoid(-logits),
    )
    output.copy_(loss * _class_weight(target, weight, input.shape[1]))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Derivative of each element of `sigmoid_focal_loss_forward` in its logit, into grad_input [N, C]."""
    logits = _wide(input)
    p = logits.sigmoid()
    positive = F.one_hot(target, input.shape[1] + 1)[:, :-1].bool()
    gradient = torch.where(
        positive,
        -alpha * (1 - p) ** gamma * (1 - p - gamma * p * F.logsigmoid(logits)),
        -(1 - alpha) * p**gamma * (gamma * (1 - p) * F.logsigmoid(-logits) - p),
    )
    grad_input.copy_(gradient * _class_weight(target, weight, input.shape[1]))
