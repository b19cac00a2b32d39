"""Ops in Triton: kernels and the functions that launch them.

Installed as `sp_fast.kernels` and called by `sp_fast.ops` for CUDA tensors. Importing it requires Triton.
"""

from .deformable_attention import deformable_attention, deformable_attention_backward
from .focal_loss import upsampled_focal_loss, upsampled_focal_loss_backward
from .kernel_supervision_loss import kernel_supervision_loss, kernel_supervision_loss_backward
from .launch import MAX_CHANNELS, supports
from .mask_sums import mask_overlaps, mask_pair_sums, mask_pair_sums_backward
from .match_prompts import match_prompts, match_prompts_backward

__all__ = [
    "MAX_CHANNELS",
    "deformable_attention",
    "deformable_attention_backward",
    "kernel_supervision_loss",
    "kernel_supervision_loss_backward",
    "mask_overlaps",
    "mask_pair_sums",
    "mask_pair_sums_backward",
    "match_prompts",
    "match_prompts_backward",
    "supports",
    "upsampled_focal_loss",
    "upsampled_focal_loss_backward",
]
