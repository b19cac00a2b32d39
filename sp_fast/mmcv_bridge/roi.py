"""mmcv's RoI pooling; RoIs are [R, 5] = (image index, x0, y0, x1, y1), pixels of the input image.

`spatial_scale` brings them to cells of the feature map.
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
    """RoI align of input [B, C, H, W] with average pooling, into output [R, C, h, w]."""
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
    """Gradient of `roi_align_forward` in its input, into grad_input [B, C, H, W]."""
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

    A RoI spans x0 * scale to (x1 + 1) * scale, unrounded (torchvision's roi_pool rounds), and a bin the
    cells from the floor of its start to the ceiling of its end. An empty bin gives 0 and argmax -1, else
    argmax = y W + x, the first in row-major order.
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
        candidates = input[int(image), :, None].masked_fill(~in_columns[:, None], -torch.inf)  # [C, w, H, W]
        row_max, column = candidates.max(dim=-1)  # [C, w, H]
        best, y = row_max[:, None].masked_fill(~in_rows[:, None], -torch.inf).max(dim=-1)  # [C, h, w]
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
    flat = widen(grad_input).flatten()
    flat = flat.index_add(0, cell.flatten(), (widen(grad_output) * (argmax >= 0)).flatten())
    grad_input.copy_(flat.view(batch, channels, height, width))
