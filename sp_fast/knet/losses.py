"""Losses of matched pairs, and the painted segmentation target."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sp_fast.knet.masks import upsample
from sp_fast.knet.matching import Assignment
from sp_fast.knet.targets import Targets

FOCAL_LOSS = dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25)
MASK_LOSS = dict(type="CrossEntropyLoss", use_sigmoid=True)
DICE_LOSS = dict(type="DiceLoss", eps=1e-3)


def mask_losses(
    loss_mask: nn.Module,
    loss_dice: nn.Module,
    mask_logits: Tensor,
    targets: Targets,
    assignment: Assignment,
    stage: int,
) -> tuple[Tensor, Tensor]:
    """Computes cross-entropy and dice loss of the matched masks in fp32, averaged over this process's pairs.

    Without pairs, both are 0 with zero gradients.

    Args:
        loss_mask: cross-entropy module for logits and targets `[P, H, W]`.
        loss_dice: dice loss module for the same tensors.
        mask_logits: `[B, N, h, w]`, at stride 8.
        targets: training targets of the batch.
        assignment: matching of all stages.
        stage: index of the stage.
    """
    pairs = max(assignment.pairs, 1)
    with torch.autocast(mask_logits.device.type, enabled=False):
        matched = mask_logits.flatten(0, 1).index_select(0, assignment.kernel_row[stage])  # [P, h, w]
        # Interpolation accepts P = 0 only as batch size, hence the added dimension.
        logits = upsample(matched.float()[:, None])[:, 0]  # [P, H, W]
        wanted = targets.masks.flatten(0, 1).index_select(0, assignment.target_row[stage]).float()
        cells = logits.shape[-2] * logits.shape[-1]
        mask = loss_mask(logits, wanted, avg_factor=pairs * cells)
        return mask, loss_dice(logits, wanted, avg_factor=pairs)


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
