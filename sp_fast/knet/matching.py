"""Bipartite matching of predictions and targets, for a whole batch and all stages at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmdet.registry import TASK_UTILS
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sp_fast.knet.targets import Targets
from sp_fast.ops import mask_overlaps
from sp_fast.transfers import together

# Replaces costs that are not finite, so that the solver runs and the losses show the NaN.
WORST_COST = 1e6


class Assignment(NamedTuple):
    """The target assigned to each kernel, for every stage.

    An image with G objects and N kernels has min(G, N) pairs at every stage; P is their sum over the batch.

    Attributes:
        gt: int64 `[S, B, N]`, index of the target within its image, -1 for none.
        kernel_row: int64 `[S, P]`, kernels of the pairs as rows of `[B N]`, ascending.
        target_row: int64 `[S, P]`, targets of the pairs as rows of `[B G]`.
    """

    gt: Tensor
    kernel_row: Tensor
    target_row: Tensor

    @property
    def pairs(self) -> int:
        """P, the number of pairs per stage."""
        return self.kernel_row.shape[1]

    def labels(self, target_labels: Tensor, stage: int, background: int) -> Tensor:
        """Class targets int64 `[B, N]` from labels `[B, G]`; `background` where nothing is assigned."""
        index = self.gt[stage]
        padded = F.pad(target_labels, (0, 1), value=background)  # [B, G + 1]
        return padded.gather(1, torch.where(index < 0, target_labels.shape[1], index))


def focal_cost(
    cls_logits: Tensor, labels: Tensor, *, alpha: float = 0.25, gamma: float = 2.0, eps: float = 1e-12
) -> Tensor:
    """Computes the class cost: focal loss for the target's class minus focal loss for background.

    Args:
        cls_logits: class logits `[B, N, K]`.
        labels: class of each target, int64 `[B, G]`.
        alpha: weight of the foreground in the focal loss.
        gamma: focusing exponent of the focal loss.
        eps: constant added inside the logarithms.

    Returns:
        `[B, N, G]`. Source: mmdet's `FocalLossCost`, batched.
    """
    index = labels[:, None].expand(-1, cls_logits.shape[1], -1)  # [B, N, G]
    p = cls_logits.sigmoid().gather(2, index)
    background = -(1 - p + eps).log() * (1 - alpha) * p**gamma
    foreground = -(p + eps).log() * alpha * (1 - p) ** gamma
    return foreground - background


def mask_costs(mask_logits: Tensor, masks: Tensor, *, eps: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Computes dice cost and mask cost. For p = sigmoid(upsampled mask) and target g, summed over cells:

        dice = 1 - (2 sum p g + eps) / (sum p^2 + sum g^2 + eps)
        mask = -(sum p g + sum (1 - p)(1 - g)) / HW

    Args:
        mask_logits: mask logits `[B, N, h, w]`, at stride 8.
        masks: target masks `[B, G, 2 h, 2 w]` in [0, 1], at stride 4.
        eps: smoothing constant of the dice cost.

    Returns:
        Both `[B, N, G]`. Source: mmdet's `DiceCost(pred_act=True, naive_dice=False)`, batched, and the
        `MaskCost` of K-Net's authors.
    """
    sums = mask_overlaps(mask_logits, masks)
    squares = sums.squares[:, :, None] + sums.target_squares[:, None]  # [B, N, G]
    areas = sums.area[:, :, None] + sums.target_area[:, None]
    cells = masks.shape[-2] * masks.shape[-1]
    dice = 1 - (2 * sums.overlap + eps) / (squares + eps)
    return dice, -(2 * sums.overlap + cells - areas) / cells  # (1 - p)(1 - g) = 1 - p - g + p g


def for_solver(costs: Tensor, count: Tensor) -> Tensor:
    """Makes costs `[B, N, G]` finite, and +inf in the columns from `count` `[B]` on, which are padding."""
    costs = costs.nan_to_num(nan=WORST_COST, posinf=WORST_COST, neginf=-WORST_COST)
    padding = torch.arange(costs.shape[2], device=costs.device) >= count[:, None]  # [B, G]
    return costs.masked_fill(padding[:, None], torch.inf)


def to_host(costs: Tensor) -> np.ndarray:
    """Copies the costs to the host: the only transfer from the device in a training step."""
    return costs.cpu().numpy()


def solve(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds the cheapest pairs of each `[N, G]` matrix in `[S, B, N, G]`.

    Columns that start with +inf are padding.

    Returns:
        The arrays of `Assignment`.
    """
    stages, batch, kernels, most = costs.shape
    assigned = np.full((stages, batch, kernels), -1, np.int64)
    kernel_rows, target_rows = [], []
    counts = np.isfinite(costs[0, :, 0]).sum(-1)  # [B]
    for s in range(stages):
        for b in range(batch):
            row, column = linear_sum_assignment(costs[s, b, :, : counts[b]])
            assigned[s, b, row] = column
            kernel_rows.append(b * kernels + row)
            target_rows.append(b * most + column)
    return (
        assigned,
        np.concatenate(kernel_rows).reshape(stages, -1),
        np.concatenate(target_rows).reshape(stages, -1),
    )


@TASK_UTILS.register_module()
class BatchedMaskAssigner:
    """Matches kernels and targets one to one by class, dice and mask cost, with one transfer to the host.

    Each stage is matched on the predictions of the stage before it, so all cost matrices are known after the
    forward pass. They are copied to the host together, and the pairs are copied back together.

    Args:
        cls_weight: weight of the class cost, `focal_cost`.
        dice_weight: weight of the dice cost.
        mask_weight: weight of the mask cost.
    """

    def __init__(self, cls_weight: float = 2.0, dice_weight: float = 4.0, mask_weight: float = 1.0) -> None:
        self.cls_weight = cls_weight
        self.dice_weight = dice_weight
        self.mask_weight = mask_weight

    def cost(self, mask_logits: Tensor, cls_logits: Tensor | None, targets: Targets) -> Tensor:
        """Computes fp32 costs `[B, N, G]` of one prediction: +inf in padding columns, finite elsewhere.

        Args:
            mask_logits: mask logits `[B, N, h, w]` at stride 8.
            cls_logits: class logits `[B, N, K]`, or None for no class cost.
            targets: training targets of the batch.
        """
        with torch.autocast(mask_logits.device.type, enabled=False):
            dice, mask = mask_costs(mask_logits, targets.masks)
            cost = self.dice_weight * dice + self.mask_weight * mask
            if cls_logits is not None:
                cost = cost + self.cls_weight * focal_cost(cls_logits.float(), targets.labels)
        return for_solver(cost, targets.count)

    @torch.no_grad()
    def __call__(self, predictions: Sequence[tuple[Tensor, Tensor | None]], targets: Targets) -> Assignment:
        """Matches S predictions, each a pair of mask logits and class logits as in `cost`."""
        costs = torch.stack([self.cost(masks, classes, targets) for masks, classes in predictions])
        return Assignment(*together(solve(to_host(costs)), costs.device))
