"""K-Net: prompts are added to K^0 (`init`) or to the kernels that the first head proposes (`proposal`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sp_fast.knet.outputs import FirstHeadOutput, StageOutput
from sp_fast.knet.targets import Targets
from sp_fast.pretraining.adapters.base import Adapter, Decorate, StageResults


class KNetAdapter(Adapter, detector="KNet"):
    """Adapter of K-Net; see `Adapter`."""

    class_heads = (r"rpn_head\.conv_seg\.", r"roi_head\.mask_head\.\d+\.fc_cls\.")
    initial_kernels = "rpn_head.init_kernels.weight"

    @property
    def kernel_channels(self) -> int:
        """C, channels of the kernels."""
        return self.detector.rpn_head.init_kernels.in_channels

    def features(self, images: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Computes C2 to C5 and P2 to P5."""
        return self.detector.extract_features(images)

    def targets(self, data_samples: Sequence[Any], image_size: tuple[int, int]) -> Targets:
        """See `Adapter.targets`; also checks the labels against the detector's classes."""
        return self.detector.targets(data_samples, image_size)

    def target_masks(
        self, targets: Targets, data_samples: Sequence[Any], image_size: tuple[int, int]
    ) -> Tensor:
        """See `Adapter.target_masks`."""
        return targets.masks

    def decorated(
        self, pyramid: tuple[Tensor, ...], decorate: Decorate, inject: str
    ) -> tuple[FirstHeadOutput, list[StageOutput]]:
        """Runs the first head and all update stages with decorated kernels."""
        first = self.detector.rpn_head(pyramid, decorate=decorate if inject == "init" else None)
        if inject == "proposal":
            first = first._replace(kernels=decorate(first.kernels))
        return first, self.detector.roi_head(first)

    def loss(
        self, pyramid: tuple[Tensor, ...], targets: Targets, decorate: Decorate, inject: str
    ) -> StageResults:
        """See `Adapter.loss`. Stage i is matched on the predictions of stage i - 1."""
        first, stages = self.decorated(pyramid, decorate, inject)
        losses, assigned = self.detector.loss_from(first, stages, targets)
        return StageResults(losses, torch.stack([stage.kernels for stage in stages]), assigned)
