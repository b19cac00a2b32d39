"""mmcv's non-maximum suppression of boxes [N, 4], xyxy in pixels."""

from __future__ import annotations

import torch
import torchvision
from torch import Tensor

from sp_fast.mmcv_bridge.precision import widen


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices int64 [K] of the boxes [N, 4] that greedy NMS keeps, by descending score.

    A box goes when its IoU with a kept one is above iou_threshold; widths are x1 - x0 + offset.
    """
    boxes = widen(boxes)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torchvision.ops.nms(boxes, widen(scores).to(boxes.dtype), iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (Bodla et al., ICCV 2017): indices int64 [K]; dets[:K] = (x0, y0, x1, y1, decayed score).

    The best remaining box is taken, each other's score is multiplied by a weight of its IoU u with it,
    and those that fall under min_score are dropped. Weight: method 0 (hard) 0 and 1 (linear) 1 - u where
    u >= iou_threshold, else 1; method 2 (gaussian) exp(-u^2 / sigma).
    """
    corners = boxes.float() + boxes.new_tensor([0, 0, offset, offset]).float()
    remaining = torch.arange(len(boxes), device=boxes.device)
    score = scores.float().clone()
    kept: list[Tensor] = []
    while len(remaining):
        best = int(score.argmax())
        dets[len(kept), :4] = boxes[remaining[best]]
        dets[len(kept), 4] = score[best]
        kept.append(remaining[best])

        others = torch.arange(len(remaining), device=boxes.device) != best
        iou = _iou_with(corners[remaining[best]], corners[remaining[others]])
        if method == 2:
            weight = torch.exp(-(iou**2) / sigma)
        else:
            reduced = torch.zeros_like(iou) if method == 0 else 1 - iou
            weight = torch.where(iou >= iou_threshold, reduced, torch.ones_like(iou))
        decayed = score[others] * weight
        above = decayed >= min_score
        remaining, score = remaining[others][above], decayed[above]
    return torch.stack(kept) if kept else remaining


def _iou_with(box: Tensor, boxes: Tensor) -> Tensor:
    # torchvision.ops.box_iou is 0 / 0 for two empty boxes; mmcv compares such a NaN, which is never above.
    return torchvision.ops.box_iou(box[None], boxes)[0].nan_to_num(0.0)
