"""Working precision of the bridge's ops."""

from __future__ import annotations

import torch
from torch import Tensor


def widen(tensor: Tensor) -> Tensor:
    """Make a tensor contiguous, and float32 if it is float16 or bfloat16, which torchvision lacks on CPU."""
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    return (tensor.float() if half else tensor).contiguous()
