"""The Triton kernels (`sp_fast.kernels`), for tensors that they take."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch
from torch import Tensor

from sp_fast.ops.extension import warn_once


@functools.cache
def _kernels_for(device: torch.device) -> ModuleType | None:
    """The kernels, imported when the first tensor of a device comes; None where they cannot be used."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        obstacle = f"{torch.cuda.get_device_name(device)} is below compute capability 8.0"
    else:
        try:
            return importlib.import_module("sp_fast.kernels")
        except ImportError as error:
            obstacle = f"{error}; install Triton"
    warn_once(
        f"sp_fast.kernels is not usable ({obstacle}); on the GPU, match_prompts and kernel_supervision_loss "
        "run in plain PyTorch, slower."
    )
    return None


def triton_for(x: Tensor) -> ModuleType | None:
    """The Triton kernels, if they take vectors such as x. They rely on arguments that were checked."""
    kernels = _kernels_for(x.device)
    return kernels if kernels is not None and kernels.supports(x) else None
