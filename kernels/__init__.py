"""Ops in Triton: kernels and the functions that launch them.

Installed as `sp_fast.kernels` and called by `sp_fast.ops` for CUDA tensors. Importing it requires Triton.
"""

from .deformable_attention import deformable_attention, deformable_attention_backward
from .kernel_supervision_loss import kernel_supervision_loss, kernel_supervision_loss_backward
from .launch import MAX_CHANNELS, supports
from .match_prompts import match_prompts, match_prompts_backward

__all__ = [
    "MAX_CHANNELS",
    "deformable_attention",
    "deformable_attention_backward",
    "kernel_supervision_loss",
    "kernel_supervision_loss_backward",
    "match_prompts",
    "match_prompts_backward",
    "supports",
]
