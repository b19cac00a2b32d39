"""Access to the Triton kernels (`sp_fast.kernels`) for tensors that they support."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch
from torch import Tensor

from sp_fast.ops.extension import warn_once


@functools.cache
def _kernels_for(device: torch.device) -> ModuleType | None:
    """The kernels, imported at the first use of a device; None where they cannot be used."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        obstacle = f"{torch.cuda.get_device_name(device)} is below compute capability 8.0"
    else:
        try:
            return importlib.import_module("sp_fast.kernels")
        except ImportError as error:
            obstacle = f"{error}; install Triton"
    warn_once(
        f"sp_fast.kernels is not usable ({obstacle}); on the GPU, deformable_attention, match_prompts, "
        "kernel_supervision_loss and the mask losses run in plain PyTorch, which is slower."
    )
    return None


def triton_for(x: Tensor) -> ModuleType | None:
    """The Triton kernels if they support the dtype and length of x; they do not check arguments."""
    kernels = _kernels_for(x.device)
    return kernels if kernels is not None and kernels.supports(x) else None
