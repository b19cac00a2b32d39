"""Ops of saliency-prompt pre-training. They depend only on PyTorch.

They are compiled where the extension `sp_fast._C` is built, else plain PyTorch (`sp_fast.ops.reference`).
"""

from sp_fast.ops.connected_parts import connected_parts
from sp_fast.ops.deformable_attention import deformable_attention
from sp_fast.ops.focal_loss import upsampled_focal_loss
from sp_fast.ops.kernel_supervision_loss import kernel_supervision_loss
from sp_fast.ops.mask_nms import mask_nms
from sp_fast.ops.mask_sums import MaskOverlaps, MaskPairSums, mask_overlaps, mask_pair_sums
from sp_fast.ops.match_prompts import match_prompts
from sp_fast.ops.matrix_nms import matrix_nms
from sp_fast.ops.packed_masks import PackedMasks
from sp_fast.ops.reference import SeedSaliency
from sp_fast.ops.roi_average_pool import roi_average_pool
from sp_fast.ops.seed_saliency import seed_saliency

__all__ = [
    "MaskOverlaps",
    "MaskPairSums",
    "PackedMasks",
    "SeedSaliency",
    "connected_parts",
    "deformable_attention",
    "kernel_supervision_loss",
    "mask_nms",
    "mask_overlaps",
    "mask_pair_sums",
    "match_prompts",
    "matrix_nms",
    "roi_average_pool",
    "seed_saliency",
    "upsampled_focal_loss",
]
