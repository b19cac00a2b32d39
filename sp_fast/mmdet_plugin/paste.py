"""Repairs how mmdet pastes masks on a CPU, which fails for a box that lies outside its image."""

from __future__ import annotations

from typing import Any

from mmdet.models.roi_heads.mask_heads import fcn_mask_head
from torch import Tensor

_paste = fcn_mask_head._do_paste_mask


def paste_masks(masks: Tensor, boxes: Tensor, img_h: int, img_w: int, skip_empty: bool = True) -> Any:
    """See mmdet's `_do_paste_mask`; pastes into the whole image if a box is outside of it.

    QueryInst does not clip its boxes, so some of an untrained model lie outside.
    """
    x0, y0, x1, y1 = boxes.unbind(1)
    outside = (x0 > img_w) | (y0 > img_h) | (x1 < 0) | (y1 < 0)
    return _paste(masks, boxes, img_h, img_w, skip_empty=skip_empty and not bool(outside.any()))


fcn_mask_head._do_paste_mask = paste_masks
