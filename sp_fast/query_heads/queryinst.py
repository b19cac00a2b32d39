"""QueryInst's training, with one transfer to the host in each stage.

The values are those of mmdet's `SparseRoIHead.loss` up to rounding. Each transfer brings the costs of the
stage's matching, and the pyramid levels of its boxes, which the masks of this stage and the boxes of the next
one are pooled from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmdet.models.dense_heads import EmbeddingRPNHead
from mmdet.models.losses import GIoULoss, accuracy
from mmdet.models.roi_heads import SparseRoIHead
from mmdet.models.utils import unpack_gt_instances
from mmdet.registry import MODELS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor

from sp_fast.knet.matching import for_solver, solve, to_host
from sp_fast.query_heads.boxes import box_costs, decode, overlaps, pool, rois_of
from sp_fast.query_heads.targets import BoxTargets, box_targets, image_sides
from sp_fast.transfers import together


class Proposals(NamedTuple):
    """What a stage begins with.

    Attributes:
        boxes: xyxy boxes `[B, N, 4]` in pixels.
        features: object features `[B, N, C]`.
        levels: for each map of the pyramid the rows of `[B N]` whose boxes it serves; None if unknown.
    """

    boxes: Tensor
    features: Tensor
    levels: Sequence[Tensor] | None = None


class Matching(NamedTuple):
    """The pairs of one stage, P in all, and where their boxes are pooled.

    Attributes:
        gt: int64 `[B, N]`, index of the target of each proposal within its image, -1 for none.
        row: int64 `[P]`, proposals of the pairs as rows of `[B N]`, ascending.
        target: int64 `[P]`, targets of the pairs as rows of `[B G]`.
        index: int64 `[P]`, targets of the pairs within their images.
        pairs: number of pairs of each image.
        levels: for each map of the pyramid the proposals `[B N]` that it serves.
        pair_levels: for each map of the pyramid the pairs `[P]` that it serves.
    """

    gt: Tensor
    row: Tensor
    target: Tensor
    index: Tensor
    pairs: list[int]
    levels: list[Tensor]
    pair_levels: list[Tensor]


def match(costs: Tensor, level: Tensor, levels: int) -> Matching:
    """Matches proposals and targets of a batch.

    Args:
        costs: costs `[B, N, G]` from `for_solver`.
        level: map of the pyramid for each proposal `[B N]`.
        levels: number of maps.
    """
    host = to_host(torch.cat([costs.flatten(), level.to(costs.dtype)]))
    solved = solve(host[: costs.numel()].reshape(1, *costs.shape))
    gt, row, target = (one[0] for one in solved)
    places: np.ndarray = host[costs.numel() :].astype(np.int64)
    per_level = [np.flatnonzero(places == k) for k in range(levels)]
    per_pair = [np.flatnonzero(places[row] == k) for k in range(levels)]
    index = target - row // costs.shape[1] * costs.shape[2]
    pairs = np.bincount(row // costs.shape[1], minlength=len(costs)).tolist()
    gt, row, target, index, *rest = together([gt, row, target, index, *per_level, *per_pair], costs.device)
    return Matching(gt, row, target, index, pairs, rest[:levels], rest[levels:])


class StageResult(NamedTuple):
    """Losses of a stage by name, the proposals for the next, and `Matching.gt`."""

    losses: dict[str, Tensor]
    proposals: Proposals
    assigned: Tensor


def run_stage(
    head: Any, stage: int, pyramid: Sequence[Tensor], before: Proposals, targets: BoxTargets
) -> StageResult:
    """Runs box head and mask head of one stage and computes their losses, without the stage's weight.

    Args:
        head: mmdet's `SparseRoIHead`.
        stage: index of the stage.
        pyramid: P2 to P5, from `pooled_maps`.
        before: proposals of the stage before.
        targets: annotations of the batch.
    """
    bbox_head, masks = head.bbox_head[stage], head.mask_roi_extractor[stage]
    pooled = pool(head.bbox_roi_extractor[stage], pyramid, rois_of(before.boxes), before.levels)
    logits, deltas, features, attended = bbox_head(pooled, before.features)
    logits, boxes = logits.float(), decode(bbox_head.bbox_coder, before.boxes, deltas.float())
    found = boxes.detach()
    rois = rois_of(found)
    with torch.no_grad(), torch.autocast(found.device.type, enabled=False):
        costs = box_costs(head.bbox_assigner[stage], logits, found, targets)
        level = masks.map_roi_levels(rois.type_as(pyramid[0]), masks.num_inputs)
        matching = match(for_solver(costs, targets.count), level, masks.num_inputs)
    losses = box_losses(head, stage, logits, boxes, targets, matching)
    pair_rois = rois[matching.row]
    chosen = attended.flatten(0, 1)[matching.row]
    pooled = pool(masks, pyramid, pair_rois, matching.pair_levels)
    logits = head.mask_head[stage](pooled, chosen)
    losses["loss_mask"] = mask_loss(head, stage, logits, pair_rois[:, 1:], targets, matching)
    return StageResult(losses, Proposals(found, features, matching.levels), matching.gt)


def box_losses(
    head: Any, stage: int, logits: Tensor, boxes: Tensor, targets: BoxTargets, matching: Matching
) -> dict[str, Tensor]:
    """The losses of mmdet's `DIIHead.loss_and_target`."""
    bbox_head, pairs = head.bbox_head[stage], len(matching.row)
    average = reduce_mean(torch.full((), float(pairs), device=logits.device))
    wanted = targets.labels.flatten()[matching.target]
    logits = logits.flatten(0, 1)  # [B N, K]
    labels = torch.full_like(logits[:, 0], bbox_head.num_classes, dtype=torch.int64)
    labels = labels.index_copy(0, matching.row, wanted)
    positive = head.train_cfg[stage].pos_weight
    weights = torch.ones_like(logits[:, 0])
    if positive > 0:
        weights = weights.index_fill(0, matching.row, positive)
    losses = {"loss_cls": bbox_head.loss_cls(logits, labels, weights, avg_factor=average)}
    if not pairs:
        nothing = boxes.sum() * 0
        return {**losses, "pos_acc": logits.new_zeros(()), "loss_bbox": nothing, "loss_iou": nothing}
    losses["pos_acc"] = accuracy(logits[matching.row], wanted)
    box = boxes.flatten(0, 1)[matching.row]
    target = targets.boxes.flatten(0, 1)[matching.target]
    sides = targets.sides.expand_as(boxes).flatten(0, 1)[matching.row]
    losses["loss_bbox"] = bbox_head.loss_bbox(box / sides, target / sides, avg_factor=average)
    if type(bbox_head.loss_iou) is GIoULoss:  # mmdet's puts its eps on the device, which waits
        loss = bbox_head.loss_iou
        total = (1 - overlaps(box, target, eps=loss.eps)).sum()
        losses["loss_iou"] = loss.loss_weight * total / (average + torch.finfo(torch.float32).eps)
    else:
        losses["loss_iou"] = bbox_head.loss_iou(box, target, avg_factor=average)
    return losses


def mask_loss(
    head: Any, stage: int, logits: Tensor, boxes: Tensor, targets: BoxTargets, matching: Matching
) -> Tensor:
    """The loss of mmdet's `DynamicMaskHead.loss_and_target`; logits `[P, K, m, m]`, boxes `[P, 4]`."""
    if not len(logits):
        return logits.sum()
    cfg = head.train_cfg[stage]
    size = (cfg.mask_size, cfg.mask_size) if isinstance(cfg.mask_size, int) else tuple(cfg.mask_size)
    height, width = targets.size
    clipped = torch.stack([boxes[:, k].clamp(0, width if k % 2 == 0 else height) for k in range(4)], 1)
    parts = zip(clipped.split(matching.pairs), matching.index.split(matching.pairs), strict=True)
    wanted = torch.cat(
        [
            masks.crops(box, index, size)
            for masks, (box, index) in zip(targets.masks, parts, strict=True)
            if len(box)
        ]
    )
    if not cfg.get("soft_mask_target", False):
        wanted = (wanted >= 0.5).to(wanted.dtype)
    average = reduce_mean(torch.full((), float(len(logits)), device=logits.device)).clamp(min=1)
    labels = targets.labels.flatten()[matching.target]
    own = logits.gather(1, labels[:, None, None, None].expand(-1, 1, *logits.shape[2:])).squeeze(1)
    return head.mask_head[stage].loss_mask(own.float().sigmoid(), wanted, avg_factor=average)


@MODELS.register_module()
class BatchedQueryInstHead(SparseRoIHead):
    """mmdet's `SparseRoIHead` for QueryInst; its losses take one transfer to the host per stage."""

    def loss(
        self, x: tuple[Tensor, ...], rpn_results_list: list, batch_data_samples: list
    ) -> dict[str, Tensor]:
        """See mmdet."""
        instances, _, metas = unpack_gt_instances(batch_data_samples)
        targets = box_targets(instances, metas)
        proposals = first_proposals(rpn_results_list)
        losses: dict[str, Tensor] = {}
        maps = pooled_maps(x)
        for stage in range(self.num_stages):
            result = run_stage(self, stage, maps, proposals, targets)
            losses.update(weighted(self, stage, result.losses))
            proposals = result.proposals
        return losses


def first_proposals(results: Sequence[InstanceData]) -> Proposals:
    """The proposals of the first stage, from mmdet's results of the `EmbeddingRPNHead`."""
    return Proposals(
        torch.stack([one.bboxes for one in results]), torch.stack([one.features for one in results])
    )


def pooled_maps(pyramid: Sequence[Tensor]) -> list[Tensor]:
    """The pyramid in fp32: mmdet rounds boxes to the maps' dtype, which in bfloat16 are whole pixels."""
    return [features.float() for features in pyramid]


def weighted(head: Any, stage: int, losses: dict[str, Tensor]) -> dict[str, Tensor]:
    """Losses of a stage by the names of mmdet, times the stage's weight."""
    weight = head.stage_loss_weights[stage]
    return {f"s{stage}.{name}": value * weight if "loss" in name else value for name, value in losses.items()}


@MODELS.register_module()
class BatchedRPNHead(EmbeddingRPNHead):
    """mmdet's `EmbeddingRPNHead`, with one transfer to the device for all images."""

    def _decode_init_proposals(
        self, x: Sequence[Tensor], batch_data_samples: Sequence[Any]
    ) -> list[InstanceData]:
        # In fp32: in bfloat16, as the maps may be, a width of 1333 pixels would be 1336.
        boxes = self.init_proposal_bboxes.weight
        sides = image_sides([sample.metainfo for sample in batch_data_samples], boxes)
        boxes = bbox_cxcywh_to_xyxy(boxes) * sides  # [B, N, 4]
        return [
            InstanceData(
                bboxes=box,
                imgs_whwh=side.expand(self.num_proposals, -1),
                features=self.init_proposal_features.weight.clone(),
            )
            for box, side in zip(boxes, sides, strict=True)
        ]
