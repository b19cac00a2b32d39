"""Mask2Former's losses, with one transfer to the host for the matchings of all decoder layers.

The values are those of mmdet's `Mask2FormerHead.loss_by_feat` up to rounding, for the same random points. The
points of all matchings are drawn before those of the losses.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.ops import point_sample
from mmdet.models.dense_heads import Mask2FormerHead
from mmdet.models.losses import CrossEntropyLoss
from mmdet.models.task_modules.assigners import ClassificationCost, CrossEntropyLossCost, DiceCost
from mmdet.models.utils import get_uncertain_point_coords_with_randomness
from mmdet.registry import MODELS
from mmdet.utils import reduce_mean
from torch import Tensor

from sp_fast.knet.matching import Assignment, for_solver, solve, to_host
from sp_fast.knet.targets import Targets
from sp_fast.query_heads.targets import mask_targets
from sp_fast.transfers import to_device, together


def point_costs(assigner: Any, logits: Tensor, points: Tensor, targets: Targets, wanted: Tensor) -> Tensor:
    """Sums the costs of a `HungarianAssigner`.

    Args:
        assigner: with costs of classes and masks.
        logits: class logits `[B, N, K + 1]`.
        points: mask logits at random points `[B, N, P]`.
        targets: annotations of the batch.
        wanted: their masks at the same points, `[B, G, P]`.

    Returns:
        fp32 `[B, N, G]`.
    """
    total = torch.zeros((), device=logits.device)
    g = wanted.transpose(1, 2)  # [B, P, G]
    for cost in assigner.match_costs:
        if type(cost) is ClassificationCost:
            labels = targets.labels[:, None].expand(-1, logits.shape[1], -1)
            found = -logits.softmax(-1).gather(2, labels)
        elif type(cost) is CrossEntropyLossCost:
            # Cross-entropy with target 1 is that with target 0 minus the logit.
            found = (F.softplus(points).sum(-1, keepdim=True) - points @ g) / points.shape[-1]
        elif type(cost) is DiceCost:
            p = points.sigmoid() if cost.pred_act else points
            power = 1 if cost.naive_dice else 2
            sizes = p.pow(power).sum(-1)[:, :, None] + wanted.pow(power).sum(-1)[:, None]
            found = 1 - (2 * (p @ g) + cost.eps) / (sizes + cost.eps)
        else:
            raise ValueError(
                "match_costs: expected ClassificationCost, CrossEntropyLossCost and DiceCost, got "
                f"{type(cost).__name__}"
            )
        total = total + found * cost.weight
    return total


@torch.no_grad()
def match(head: Any, classes: Sequence[Tensor], masks: Sequence[Tensor], targets: Targets) -> Assignment:
    """Matches the predictions of all layers, each at random points of its own."""
    costs = []
    for logits, maps in zip(classes, masks, strict=True):
        with torch.autocast(maps.device.type, enabled=False):
            points = torch.rand(len(maps), head.num_points, 2, device=maps.device)
            wanted = point_sample(targets.masks, points)
            found = point_sample(maps.float(), points)
            cost = point_costs(head.assigner, logits.float(), found, targets, wanted)
            costs.append(for_solver(cost, targets.count))
    return Assignment(*together(solve(to_host(torch.stack(costs))), costs[0].device))


def class_losses(head: Any, classes: Sequence[Tensor], targets: Targets, assignment: Assignment) -> Tensor:
    """Weighted cross-entropy of each layer, `[L]`."""
    loss = head.loss_cls
    if type(loss) is not CrossEntropyLoss or loss.use_sigmoid or loss.class_weight is None:
        raise ValueError(
            "loss_cls: expected a CrossEntropyLoss with use_sigmoid=False and class_weight, got "
            f"{type(loss).__name__} with class_weight={getattr(loss, 'class_weight', None)}"
        )
    weights = to_device(loss.class_weight, classes[0].device, torch.float32)
    losses = []
    for layer, logits in enumerate(classes):
        labels = assignment.labels(targets.labels, layer, background=head.num_classes).flatten()
        terms = F.cross_entropy(logits.flatten(0, 1).float(), labels, weight=weights, reduction="none")
        losses.append(terms.sum() / (weights[labels].sum() + torch.finfo(torch.float32).eps))
    return loss.loss_weight * torch.stack(losses)


def mask_losses(
    head: Any, maps: Tensor, targets: Targets, assignment: Assignment, layer: int, average: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and dice loss of a layer at its most uncertain points and at random ones.

    Args:
        head: mmdet's head.
        maps: mask logits `[B, N, h, w]`.
        targets: annotations of the batch.
        assignment: matchings of all layers.
        layer: index of the layer.
        average: number of masks to divide by.
    """
    chosen = maps.flatten(0, 1).index_select(0, assignment.kernel_row[layer])
    chosen = chosen[:, None].float()  # [P, 1, h, w]
    if not len(chosen):
        return chosen.sum(), chosen.sum()
    with torch.no_grad():
        points = get_uncertain_point_coords_with_randomness(
            chosen, None, head.num_points, head.oversample_ratio, head.importance_sample_ratio
        )
        own = targets.masks.flatten(0, 1).index_select(0, assignment.target_row[layer])[:, None]
        wanted = point_sample(own, points).squeeze(1)
    found = point_sample(chosen, points).squeeze(1)  # [P, points]
    dice = head.loss_dice(found, wanted, avg_factor=average)
    mask = head.loss_mask(found.flatten(), wanted.flatten(), avg_factor=average * head.num_points)
    return mask, dice


def layer_losses(
    head: Any, classes: Sequence[Tensor], masks: Sequence[Tensor], targets: Targets
) -> tuple[dict[str, Tensor], Tensor]:
    """Computes the losses of all layers, by the names of mmdet, and their matchings.

    Args:
        head: mmdet's `Mask2FormerHead`.
        classes: class logits `[B, N, K + 1]` of the initial queries and of every layer.
        masks: their mask logits `[B, N, h, w]`.
        targets: annotations of the batch, with masks of any size.

    Returns:
        The losses, and int64 `[L, B, N]`: index of each query's target, -1 for none.
    """
    assignment = match(head, classes, masks, targets)
    of_classes = class_losses(head, classes, targets, assignment)
    # mmdet counts an image without objects as one.
    matched = targets.count.clamp(1, classes[0].shape[1]).sum().float()
    average = reduce_mean(matched).clamp(min=1)
    losses = {}
    for layer, maps in enumerate(masks):
        mask, dice = mask_losses(head, maps, targets, assignment, layer, average)
        prefix = "" if layer == len(masks) - 1 else f"d{layer}."
        losses.update(
            {f"{prefix}loss_cls": of_classes[layer], f"{prefix}loss_mask": mask, f"{prefix}loss_dice": dice}
        )
    return losses, assignment.gt


@MODELS.register_module()
class BatchedMask2FormerHead(Mask2FormerHead):
    """mmdet's `Mask2FormerHead` for instances; its losses take one transfer to the host."""

    def loss(self, x: tuple[Tensor, ...], batch_data_samples: list) -> dict[str, Tensor]:
        """See mmdet."""
        classes, masks = self(x, batch_data_samples)
        targets = mask_targets([sample.gt_instances for sample in batch_data_samples])
        return layer_losses(self, classes, masks, targets)[0]
