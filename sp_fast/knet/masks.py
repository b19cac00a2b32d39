"""Operations of kernels on masks: gather features under them, predict them, resize them."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sp_fast.knet.targets import TARGET_STRIDE

MASK_STRIDE = 8


class HalfProducts(torch.autograd.Function):
    """Batched product of half-precision matrices with an fp32 result; the first has no gradient."""

    @staticmethod
    def forward(ctx: Any, inside: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(inside)
        return torch.bmm(inside, x, out_dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:  # type: ignore[override]
        (inside,) = ctx.saved_tensors
        return None, inside.transpose(1, 2) @ grad.to(inside.dtype)


def gather_features(mask_logits: Tensor, x: Tensor) -> Tensor:
    """Sums the features under each hard mask: sum over cells of 1[sigmoid(mask) > 0.5] x.

    No gradient flows into the masks. The sum runs over thousands of cells, so it is accumulated in fp32 even
    under autocast. On a GPU, half-precision features are read as they are; no fp32 copy is made.

    Args:
        mask_logits: mask logits `[B, N, h, w]`.
        x: features `[B, C, h, w]`.

    Returns:
        fp32 `[B, N, C]`.
    """
    with torch.autocast(x.device.type, enabled=False):
        inside = (mask_logits > 0).flatten(2)  # [B, N, h w]; sigmoid(m) > 0.5 is m > 0
        cells = x.flatten(2)  # [B, C, h w]
        if x.is_cuda and x.dtype in (torch.float16, torch.bfloat16):
            return HalfProducts.apply(inside.to(x.dtype), cells.transpose(1, 2))
        # In this order, the gradient of x has the layout of x.
        return (cells.float() @ inside.float().transpose(1, 2)).transpose(1, 2)


def convolve(kernels: Tensor, x: Tensor) -> Tensor:
    """Convolves features `[B, C, h, w]` with 1 x 1 kernels `[B, N, C]`, image by image, to `[B, N, h, w]`."""
    return (kernels @ x.flatten(2)).unflatten(2, x.shape[-2:])


def upsample(logits: Tensor) -> Tensor:
    """Upsamples maps `[..., M, h, w]` bilinearly from stride 8 to stride 4, the stride of the losses."""
    return F.interpolate(
        logits, scale_factor=MASK_STRIDE // TARGET_STRIDE, mode="bilinear", align_corners=False
    )
