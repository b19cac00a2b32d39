"""Prompt matching and the kernel loss in Triton: kernels, and the plain functions that launch them.

Installed as `sp_fast.kernels`; `sp_fast.ops` calls these for CUDA tensors. Importing it needs Triton.
"""

from .kernel_supervision_loss import kernel_supervision_loss, kernel_supervision_loss_backward
from .launch import MAX_CHANNELS, supports
from .match_prompts import match_prompts, match_prompts_backward

__all__ = [
    "MAX_CHANNELS",
    "kernel_supervision_loss",
    "kernel_supervision_loss_backward",
    "match_prompts",
    "match_prompts_backward",
    "supports",
]
