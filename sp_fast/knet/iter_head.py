"""The update stages of K-Net, in sequence."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from mmdet.utils import reduce_mean
from mmengine.model import BaseModule
from torch import Tensor, nn

from sp_fast.knet.matching import Assignment
from sp_fast.knet.outputs import FirstHeadOutput, StageOutput
from sp_fast.knet.targets import Targets


@MODELS.register_module()
class KernelIterHead(BaseModule):
    """Refines kernels and masks in stages that share no weights.

    Args:
        mask_head: one config for all stages, or a list with one config per stage.
        num_stages: S, the number of stages.
        stage_loss_weights: factor of the losses of each stage; default 1.
    """

    with_shared_head = False
    with_bbox = False
    with_mask = True

    def __init__(
        self,
        mask_head: dict | Sequence[dict],
        num_stages: int = 3,
        stage_loss_weights: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        configs = [mask_head] * num_stages if isinstance(mask_head, dict) else list(mask_head)
        weights = [1.0] * num_stages if stage_loss_weights is None else list(stage_loss_weights)
        if not len(configs) == len(weights) == num_stages:
            raise ValueError(
                f"num_stages: expected as many entries in mask_head and stage_loss_weights, got {num_stages} "
                f"stages, {len(configs)} heads and {len(weights)} weights"
            )
        self.mask_head = nn.ModuleList([MODELS.build(config) for config in configs])
        self.stage_loss_weights = weights

    def init_weights(self) -> None:
        """Initialises all stages."""
        for head in self.mask_head:
            head.init_weights()

    def forward(self, first: FirstHeadOutput) -> list[StageOutput]:
        """Runs all stages, starting from the proposal kernels and the first masks."""
        stages: list[StageOutput] = []
        for head in self.mask_head:
            before = stages[-1] if stages else first
            stages.append(head(first.x, before.kernels, before.mask_logits))
        return stages

    def loss(
        self, stages: Sequence[StageOutput], targets: Targets, assignment: Assignment
    ) -> dict[str, Tensor]:
        """Computes `s{i}_loss_cls`, `s{i}_loss_mask` and `s{i}_loss_dice` for every stage i."""
        matched = torch.full((), assignment.pairs, dtype=torch.float32, device=targets.masks.device)
        average = reduce_mean(matched).clamp(min=1.0)
        losses: dict[str, Tensor] = {}
        for i, (head, output, weight) in enumerate(
            zip(self.mask_head, stages, self.stage_loss_weights, strict=True)
        ):
            for name, value in head.loss(output, targets, assignment, i, average).items():
                losses[f"s{i}_{name}"] = value * weight
        return losses
