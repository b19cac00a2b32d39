"""Launches of kernels, and arithmetic that the kernels share."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

# Kernels hold whole vectors in registers. Longer vectors, and fp64, run in plain PyTorch.
MAX_CHANNELS = 4096
DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Elements of a tile: 16 in the registers of each of 128 threads.
TILE = 2048

COSINE_EPS = tl.constexpr(1e-8)


class Launch(NamedTuple):
    """One launch of a kernel: number of programs, arguments, and warps per program."""

    kernel: Any
    programs: int
    arguments: dict[str, Any]
    warps: int = 4

    def run(self, device: torch.device) -> None:
        """Launch on the device's current stream."""
        if self.programs == 0:
            return
        # Triton launches on the current device, not on that of the tensors.
        with torch.cuda.device(device if device.type == "cuda" else -1):
            self.kernel[(self.programs,)](**self.arguments, num_warps=self.warps)


def supports(x: Tensor) -> bool:
    """Whether the kernels take vectors of this dtype and length."""
    return x.dtype in DTYPES and 0 < x.shape[-1] <= MAX_CHANNELS


def up_to(limit: int, size: int) -> int:
    """The smallest power of two that holds `size`, at most `limit` (a power of two)."""
    return min(limit, triton.next_power_of_2(max(size, 1)))


@triton.jit
def inverse(norm):
    """1 / max(norm, eps)."""
    return tl.math.div_rn(1.0, tl.maximum(norm, COSINE_EPS))
