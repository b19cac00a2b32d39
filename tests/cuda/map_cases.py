"""Feature maps of any size and layout, for the CUDA kernels."""

import torch
from hypothesis import strategies as st
from op_cases import HALVES_AND_FLOAT, SEEDS, generator, scattered
from torch import Tensor

LAYOUTS = ["contiguous", "channels_last", "scattered", "shifted", "channels_between", "rows_of_more"]


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values [B, D, H, W], laid out in memory in one of many ways."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "scattered":
        return scattered(x)
    if layout == "shifted":  # channels last, at no multiple of 16 bytes
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
    """Features [B, D, H, W], of small whole numbers or normal, and the sizes of their valid parts.

    The padding holds NaN and infinity.
    """
    batch, depth = draw(st.integers(0, 3)), draw(st.sampled_from([1, 2, 7, 8, 16, 33, 64]))
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 21))
    random = generator(draw(SEEDS))
    shape = (batch, depth, height, width)
    draws = torch.randint(-3, 4, shape, generator=random) if whole else torch.randn(shape, generator=random)
    features = draws.to(draw(HALVES_AND_FLOAT))
    valid = None
    if draw(st.booleans()):
        valid = torch.stack(
            [torch.randint(1, n + 1, (batch,), generator=random) for n in (height, width)], dim=1
        )
        for image, (rows, columns) in enumerate(valid.tolist()):
            features[image, :, rows:] = torch.nan
            features[image, :, :, columns:] = torch.inf
        valid = valid.to(draw(st.sampled_from([torch.int32, torch.int64])))
    return laid_out(features, draw(st.sampled_from(LAYOUTS))), valid
