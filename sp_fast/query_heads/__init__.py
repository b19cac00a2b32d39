"""mmdet's QueryInst and Mask2Former, trained without waiting for the GPU at every image."""

import sp_fast.mmcv_bridge  # noqa: F401  (provides the ops that mmdet imports)

# isort: split
from sp_fast.query_heads.mask2former import BatchedMask2FormerHead
from sp_fast.query_heads.pixel_decoder import BatchedPixelDecoder
from sp_fast.query_heads.queryinst import BatchedQueryInstHead, BatchedRPNHead

__all__ = ["BatchedMask2FormerHead", "BatchedPixelDecoder", "BatchedQueryInstHead", "BatchedRPNHead"]
