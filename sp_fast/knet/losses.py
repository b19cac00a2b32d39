"""Losses of matched pairs, and the painted segmentation target."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmdet.models.losses import CrossEntropyLoss, DiceLoss, FocalLoss
from torch import Tensor, nn

from sp_fast.knet.masks import upsample
from sp_fast.knet.matching import Assignment
from sp_fast.knet.targets import Targets
from sp_fast.ops import mask_pair_sums, upsampled_focal_loss

FOCAL_LOSS = dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25)
MASK_LOSS = dict(type="CrossEntropyLoss", use_sigmoid=True)
DICE_LOSS = dict(type="DiceLoss", eps=1e-3)


def are_sums(loss_mask: nn.Module, loss_dice: nn.Module) -> bool:
    """Whether the two losses follow from `mask_pair_sums`: without options besides weight and eps."""
    return (
        type(loss_mask) is CrossEntropyLoss
        and loss_mask.use_sigmoid
        and loss_mask.class_weight is None
        and loss_mask.ignore_index is None
        and type(loss_dice) is DiceLoss
        and loss_dice.activate
        and not loss_dice.naive_dice
        and loss_mask.reduction == loss_dice.reduction == "mean"
    )


def mask_losses(
    loss_mask: nn.Module,
    loss_dice: nn.Module,
    mask_logits: Tensor,
    targets: Targets,
    assignment: Assignment,
    stage: int,
) -> tuple[Tensor, Tensor]:
    """Computes cross-entropy and dice loss of the matched masks in fp32, averaged over this process's pairs.

    Without pairs, both are 0 with zero gradients. mmdet's two losses are computed without upsampled masks.

    Args:
        loss_mask: cross-entropy module for logits and targets `[P, H, W]`.
        loss_dice: dice loss module for the same tensors.
        mask_logits: `[B, N, h, w]`, at stride 8.
        targets: training targets of the batch.
        assignment: matching of all stages.
        stage: index of the stage.
    """
    pairs = max(assignment.pairs, 1)
    cells = targets.masks.shape[-2] * targets.masks.shape[-1]
    row = assignment.target_row[stage]
    with torch.autocast(mask_logits.device.type, enabled=False):
        matched = mask_logits.flatten(0, 1).index_select(0, assignment.kernel_row[stage])  # [P, h, w]
        if are_sums(loss_mask, loss_dice):
            sums = mask_pair_sums(matched, targets.masks.flatten(0, 1), row)
            mask = loss_mask.loss_weight * sums.cross_entropy.sum() / (pairs * cells)
            dice = 1 - 2 * sums.overlap / (sums.squares + sums.target_squares + 2 * loss_dice.eps)
            return mask, loss_dice.loss_weight * dice.sum() / pairs
        # Interpolation accepts P = 0 only as batch size, hence the added dimension.
        logits = upsample(matched.float()[:, None])[:, 0]  # [P, H, W]
        wanted = targets.masks.flatten(0, 1).index_select(0, row).float()
        mask = loss_mask(logits, wanted, avg_factor=pairs * cells)
        return mask, loss_dice(logits, wanted, avg_factor=pairs)


def segmentation_loss(loss_seg: nn.Module, seg_logits: Tensor, painted: Tensor) -> Tensor:
    """Computes the loss of the segmentation in fp32, divided by the number of painted cells, at least 1.

    mmdet's focal loss with gamma = 2 is computed without upsampled logits and one-hot labels.

    Args:
        loss_seg: focal loss module for logits `[M, K]` and labels `[M]`.
        seg_logits: class logits `[B, K, h, w]`, at stride 8.
        painted: class of each cell, int64 `[B, 2 h, 2 w]`; K is background.
    """
    with torch.autocast(seg_logits.device.type, enabled=False):
        average = (painted < seg_logits.shape[1]).sum().clamp(min=1)
        plain = type(loss_seg) is FocalLoss and not loss_seg.activated and loss_seg.reduction == "mean"
        if plain and loss_seg.gamma == 2:
            total = upsampled_focal_loss(seg_logits, painted, alpha=loss_seg.alpha)
            return loss_seg.loss_weight * total / average
        logits = upsample(seg_logits.float()).permute(0, 2, 3, 1).flatten(0, 2)  # [B H W, K]
        return loss_seg(logits, painted.flatten(), avg_factor=average)


def paint_segmentation(targets: Targets, assignment: Assignment, num_classes: int) -> Tensor:
    """Paints the segmentation target: every cell that a matched mask touches gets the class of the mask.

    Where masks overlap, the one matched with the later kernel of the first stage is on top.

    Returns:
        int64 `[B, H, W]`; `num_classes` is background.
    """
    batch, most = targets.labels.shape
    kernels = assignment.gt.shape[2]
    order = targets.masks.new_zeros(batch * most)  # 1 + kernel of each target, 0 for none
    order[assignment.target_row[0]] = (assignment.kernel_row[0] % kernels + 1).to(order.dtype)
    height = (targets.masks > 0) * order.view(batch, most, 1, 1)  # [B, G, H, W]
    ground = targets.masks.new_zeros(batch, 1, *targets.masks.shape[-2:])
    top, index = torch.cat([ground, height], 1).max(1)  # [B, H, W]
    labels = F.pad(targets.labels, (1, 0), value=num_classes)  # [B, 1 + G]
    label = labels.gather(1, index.flatten(1)).view_as(index)
    return torch.where(top > 0, label, num_classes)
