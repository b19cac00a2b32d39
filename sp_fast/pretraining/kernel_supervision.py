"""Kernel supervision (Eq. 9), on plain tensors of any model family."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sp_fast.ops import kernel_supervision_loss


class KernelSupervision(nn.Module):
    """Kernel loss of Eq. 9: pulls the kernel matched with a proposal towards the proposal's seed.

    `1 - cos(Linear(S_l), K_{n_l}^i)` over every proposal l and update stage i, where n_l is the kernel that
    bipartite matching assigned to the proposal at that stage. The linear layer (D -> C) is trained, but not
    exported after pre-training.

    Args:
        seed_channels: D, channels of the features that made the proposals.
        kernel_channels: C, channels of the kernels.
        loss_weight: weight of the loss in Eq. 10.
        reduction: `mean` over the matched pairs of a stage, or `sum`, as in Eq. 9.
        center: first subtract the mean over the step's matched pairs from kernels and targets. Without
            centering, training can make the loss small by turning all kernels and targets in one direction,
            whatever the seeds are; what remains after subtracting the means distinguishes the proposals.
    """

    def __init__(
        self,
        seed_channels: int,
        kernel_channels: int,
        *,
        loss_weight: float = 1.0,
        reduction: str = "mean",
        center: bool = False,
    ) -> None:
        super().__init__()
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction: expected 'mean' or 'sum', got {reduction!r}")
        self.linear = nn.Linear(seed_channels, kernel_channels)
        self.loss_weight = loss_weight
        self.reduction = reduction
        self.center = center

    def forward(self, kernels: Tensor, seeds: Tensor, index: Tensor) -> Tensor:
        """Computes the weighted loss, an fp32 scalar; 0 with zero gradients if nothing is matched.

        Args:
            kernels: `[S, B, N, C]`, the kernels after each update stage.
            seeds: `[B, L, D]`, seed of each proposal.
            index: int64 `[S, B, L]`, kernel matched with each proposal, from `matched_kernels`.
        """
        if seeds.shape[-1] != self.linear.in_features:
            raise ValueError(
                f"seeds: expected [B, L, {self.linear.in_features}] from seed_channels, "
                f"got {tuple(seeds.shape)}"
            )
        targets = self.linear(seeds.to(self.linear.weight.dtype)).to(kernels.dtype)  # [B, L, C]
        if self.center:
            kernels, targets = _centered(kernels, targets, index)
        return self.loss_weight * kernel_supervision_loss(kernels, targets, index, reduction=self.reduction)


def _centered(kernels: Tensor, targets: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Subtracts the mean of the stage's matched kernels, and the mean of the targets matched at any stage."""
    matched = (index >= 0).unsqueeze(-1)  # [S, B, L, 1]
    row = index.clamp(min=0).unsqueeze(-1).expand(-1, -1, -1, kernels.shape[-1])
    pairs = matched.sum((1, 2)).clamp(min=1)  # [S, 1]
    mean_kernel = (kernels.gather(2, row) * matched).sum((1, 2)) / pairs  # [S, C]
    used = matched.any(0)  # [B, L, 1]
    mean_target = (targets * used).sum((0, 1)) / used.sum().clamp(min=1)  # [C]
    return kernels - mean_kernel[:, None, None], targets - mean_target


def matched_kernels(assigned: Tensor, num_targets: int) -> Tensor:
    """Inverts an assignment: from the target of each kernel to the kernel of each target.

    Args:
        assigned: int64 `[S, B, N]`, index of the target matched with each kernel, -1 for none.
        num_targets: L, targets per image, including padding.

    Returns:
        int64 `[S, B, L]`, index of the kernel matched with each target, -1 for none.
    """
    stages, batch, num_kernels = assigned.shape
    # An extra last column receives the kernels that have no target.
    index = assigned.new_full((stages, batch, num_targets + 1), -1)
    slot = torch.where(assigned >= 0, assigned, num_targets)
    kernel = torch.arange(num_kernels, device=assigned.device).expand_as(assigned)
    return index.scatter_(2, slot, kernel)[..., :num_targets]
