"""Feature maps of any size and layout, for the CUDA kernels."""

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.ops.op_cases import draw_maps, scattered

LAYOUTS = ["contiguous", "channels_last", "scattered", "shifted", "channels_between", "rows_of_more"]


def laid_out(x: Tensor, layout: str) -> Tensor:
    """Lay out the values of x [B, D, H, W] in memory in one of several ways."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "scattered":
        return scattered(x)
    if layout == "shifted":  # channels last, at an address that is not a multiple of 16 bytes
        flat = x.new_full((x.numel() + 1,), torch.nan)
        flat[1:] = x.permute(0, 2, 3, 1).flatten()
        shape = (x.shape[0], x.shape[2], x.shape[3], x.shape[1])
        return flat[1:].view(shape).permute(0, 3, 1, 2)
    if layout == "channels_between":
        return x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    if layout == "rows_of_more":  # channels last, a part of larger maps of more channels
        batch, depth, height, width = x.shape
        more = x.new_full((batch, height + 1, width + 3, depth + 16), torch.nan)
        more[:, :height, 2 : width + 2, 8 : depth + 8] = x.permute(0, 2, 3, 1)
        return more[:, :height, 2 : width + 2, 8 : depth + 8].permute(0, 3, 1, 2)
    return x.contiguous()


@st.composite
def drawn_maps(draw, whole: bool = False) -> tuple[Tensor, Tensor | None]:
    """Features [B, D, H, W], small integers or normally distributed, and the sizes of their valid parts.

    The padding holds NaN and infinity.
    """
    features, valid, _ = draw_maps(draw, st.sampled_from([1, 2, 7, 8, 16, 33, 64]), whole)
    return laid_out(features, draw(st.sampled_from(LAYOUTS))), valid
