"""mmcv's sigmoid focal loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sp_fast.mmcv_bridge.precision import widen


def _class_weight(target: Tensor, weight: Tensor, classes: int) -> Tensor | float:
    """weight[target] as [N, 1]; 1 for background (target `classes`), and without weights."""
    if weight.numel() == 0:
        return 1.0
    return torch.cat([weight, weight.new_ones(1)])[target.clamp(max=classes)][:, None]


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Sigmoid focal loss (Lin et al., ICCV 2017), written to output [N, C].

    -alpha (1 - p)^gamma log p at the target class, -(1 - alpha) p^gamma log(1 - p) elsewhere, times
    weight[target]. input: logits [N, C]; target: int64 [N], C for background; weight: [C] or empty.
    """
    logits = widen(input)
    p = logits.sigmoid()
    positive = F.one_hot(target, input.shape[1] + 1)[:, :-1].bool()
    loss = torch.where(
        positive,
        -alpha * (1 - p) ** gamma * F.logsigmoid(logits),
        -(1 - alpha) * p**gamma * F.logsigmoid(-logits),
    )
    output.copy_(loss * _class_weight(target, weight, input.shape[1]))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Derivative of the focal loss with respect to the logits, written to grad_input [N, C]."""
    logits = widen(input)
    p = logits.sigmoid()
    positive = F.one_hot(target, input.shape[1] + 1)[:, :-1].bool()
    gradient = torch.where(
        positive,
        -alpha * (1 - p) ** gamma * (1 - p - gamma * p * F.logsigmoid(logits)),
        -(1 - alpha) * p**gamma * (gamma * (1 - p) * F.logsigmoid(-logits) - p),
    )
    grad_input.copy_(gradient * _class_weight(target, weight, input.shape[1]))
