"""Boxes of a batch: overlap, decoding, matching costs and pooling under them, as mmdet defines them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.task_modules.assigners import BBoxL1Cost, FocalLossCost, IoUCost
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.structures.bbox import bbox_xyxy_to_cxcywh
from torch import Tensor

from sp_fast.knet.matching import focal_cost
from sp_fast.query_heads.targets import BoxTargets
from sp_fast.transfers import to_device

_LARGEST_CHANGE = abs(math.log(16 / 1000))  # of the logarithm of a side, in one stage


def overlaps(boxes: Tensor, others: Tensor, mode: str = "giou", eps: float = 1e-6) -> Tensor:
    """Intersection over union, plain (`iou`) or generalised (`giou`), of xyxy boxes that broadcast.

    GIoU = IoU - (E - U) / E, with U the area of the union and E that of the smallest box around both; both
    are at least `eps`.
    """

    def area(corner: Tensor, opposite: Tensor) -> Tensor:
        return (opposite - corner).clamp(min=0).prod(-1)

    shared = area(
        torch.maximum(boxes[..., :2], others[..., :2]), torch.minimum(boxes[..., 2:], others[..., 2:])
    )
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1) + (others[..., 2:] - others[..., :2]).prod(-1)
    union = (areas - shared).clamp(min=eps)
    if mode == "iou":
        return shared / union
    around = area(
        torch.minimum(boxes[..., :2], others[..., :2]), torch.maximum(boxes[..., 2:], others[..., 2:])
    )
    around = around.clamp(min=eps)
    return shared / union - (around - union) / around


def decode(coder: Any, boxes: Tensor, deltas: Tensor) -> Tensor:
    """Moves and scales xyxy boxes `[..., 4]` by a head's output `[..., 4]`, as `DeltaXYWHBBoxCoder` does."""
    if type(coder) is not DeltaXYWHBBoxCoder or coder.clip_border or coder.add_ctr_clamp:
        raise ValueError(
            "bbox_coder: expected a DeltaXYWHBBoxCoder with clip_border=False and add_ctr_clamp=False, got "
            f"{type(coder).__name__} with {vars(coder)}"
        )
    spread = to_device([coder.means, coder.stds], deltas.device, deltas.dtype)
    deltas = deltas * spread[1] + spread[0]
    sides = boxes[..., 2:] - boxes[..., :2]
    centre = (boxes[..., :2] + boxes[..., 2:]) * 0.5 + sides * deltas[..., :2]
    half = sides * deltas[..., 2:].clamp(-_LARGEST_CHANGE, _LARGEST_CHANGE).exp() * 0.5
    return torch.cat([centre - half, centre + half], -1)


def box_costs(assigner: Any, logits: Tensor, boxes: Tensor, targets: BoxTargets) -> Tensor:
    """Sums the costs of a `HungarianAssigner` for class logits `[B, N, K]` and boxes `[B, N, 4]`.

    Returns:
        fp32 `[B, N, G]`.
    """
    total = torch.zeros((), device=boxes.device)
    for cost in assigner.match_costs:
        if type(cost) is FocalLossCost and not cost.binary_input:
            found = focal_cost(logits, targets.labels, alpha=cost.alpha, gamma=cost.gamma, eps=cost.eps)
        elif type(cost) is BBoxL1Cost:
            pair = [boxes, targets.boxes]
            if cost.box_format == "xywh":
                pair = [bbox_xyxy_to_cxcywh(one) for one in pair]
            found = torch.cdist(*(one / targets.sides for one in pair), p=1)
        elif type(cost) is IoUCost:
            found = -overlaps(boxes[:, :, None], targets.boxes[:, None], cost.iou_mode)
        else:
            raise ValueError(
                "match_costs: expected FocalLossCost of labels, BBoxL1Cost and IoUCost, got "
                f"{type(cost).__name__}"
            )
        total = total + found * cost.weight
    return total


def rois_of(boxes: Tensor) -> Tensor:
    """Boxes `[B, N, 4]` as mmdet's RoIs `[B N, 5]`, which begin with the index of their image."""
    image = torch.arange(len(boxes), device=boxes.device, dtype=boxes.dtype)
    return torch.cat([image.repeat_interleave(boxes.shape[1])[:, None], boxes.flatten(0, 1)], 1)


def pool(extractor: Any, pyramid: Sequence[Tensor], rois: Tensor, rows: Sequence[Tensor] | None) -> Tensor:
    """Pools each RoI from the level of its size, as mmdet's `SingleRoIExtractor` does.

    Args:
        extractor: mmdet's extractor.
        pyramid: feature maps, finest first.
        rois: RoIs `[R, 5]`.
        rows: for each level the rows of its RoIs; None if they are not known on the host. Then all RoIs are
            pooled from all levels, since asking would wait.

    Returns:
        `[R, C, *size]`.
    """
    maps = pyramid[: extractor.num_inputs]
    rois = rois.type_as(maps[0])
    if rows is None:
        level = extractor.map_roi_levels(rois, len(maps))[:, None, None, None]
        pooled = extractor.roi_layers[0](maps[0], rois)
        for i, (layer, features) in enumerate(zip(extractor.roi_layers[1:], maps[1:], strict=True), 1):
            pooled = torch.where(level == i, layer(features, rois), pooled)
        return pooled
    size = extractor.roi_layers[0].output_size
    pooled = maps[0].new_zeros(len(rois), extractor.out_channels, *size)
    for layer, features, row in zip(extractor.roi_layers, maps, rows, strict=True):
        if len(row):
            pooled.index_copy_(0, row, layer(features, rois[row]))
        else:
            pooled = pooled + features.sum() * 0  # a level without RoIs gets a gradient too
    return pooled
