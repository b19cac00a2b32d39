"""mmcv's non-maximum suppression of boxes [N, 4], xyxy in pixels."""

from __future__ import annotations

import torchvision
from torch import Tensor

from sp_fast.mmcv_bridge.precision import widen


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices int64 [K] of the boxes [N, 4] that greedy NMS keeps, by descending score.

    A box is removed if its IoU with a kept one is above `iou_threshold`; widths are x1 - x0 + offset.
    """
    boxes = widen(boxes)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torchvision.ops.nms(boxes, widen(scores).to(boxes.dtype), iou_threshold)
