"""What kernels do with masks: gather features under them, make them, bring them to another size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sp_fast.knet.targets import TARGET_STRIDE

MASK_STRIDE = 8


def gather_features(mask_logits: Tensor, x: Tensor) -> Tensor:
    """The sum of the features under each hard mask, sum over cells of 1[sigmoid(mask) > 0.5] x.

    No gradient flows into the masks. The sum runs over thousands of cells, so it is kept in fp32, under
    autocast too.

    Args:
        mask_logits: `[B, N, h, w]`.
        x: `[B, C, h, w]`.

    Returns:
        fp32 `[B, N, C]`.
    """
    with torch.autocast(x.device.type, enabled=False):
        inside = (mask_logits > 0).float().flatten(2)  # [B, N, h w]; sigmoid(m) > 0.5 is m > 0
        return inside @ x.float().flatten(2).transpose(1, 2)


def convolve(kernels: Tensor, x: Tensor) -> Tensor:
    """Each image's 1 x 1 kernels `[B, N, C]` on its features `[B, C, h, w]`: mask logits `[B, N, h, w]`."""
    return (kernels @ x.flatten(2)).unflatten(2, x.shape[-2:])


def upsample(logits: Tensor) -> Tensor:
    """Maps `[..., M, h, w]` at stride 8 to stride 4, the stride of the losses: bilinear, x2."""
    return F.interpolate(
        logits, scale_factor=MASK_STRIDE // TARGET_STRIDE, mode="bilinear", align_corners=False
    )
