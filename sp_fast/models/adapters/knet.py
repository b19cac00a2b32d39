"""K-Net: prompts go onto K^0 (`init`) or onto the kernels the first head proposes (`proposal`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sp_fast.models.adapters.base import Adapter, Decorate
from sp_fast.models.knet import Targets


class KNetAdapter(Adapter, detector="KNet"):
    """See :class:`Adapter`."""

    class_heads = (r"rpn_head\.conv_seg\.", r"roi_head\.mask_head\.\d+\.fc_cls\.")
    injection_points = ("init", "proposal")

    @property
    def kernel_channels(self) -> int:
        """C, channels of the kernels."""
        return self.detector.rpn_head.init_kernels.in_channels

    def features(self, images: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """See :meth:`Adapter.features`."""
        return self.detector.extract_features(images)

    def targets(self, data_samples: list, image_size: tuple[int, int]) -> Targets:
        """See :meth:`Adapter.targets`."""
        return self.detector.targets(data_samples, image_size)

    def targets_from_masks(self, masks: Tensor, count: Tensor) -> Targets:
        """See :meth:`Adapter.targets_from_masks`."""
        return Targets(masks=masks, labels=torch.zeros_like(masks[..., 0, 0], dtype=torch.int64), count=count)

    def loss(
        self, pyramid: tuple[Tensor, ...], targets: Any, decorate: Decorate, inject: str
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """See :meth:`Adapter.loss`."""
        first = self.detector.rpn_head(pyramid, decorate=decorate if inject == "init" else None)
        if inject == "proposal":
            first = first._replace(kernels=decorate(first.kernels))
        stages = self.detector.roi_head(first)
        losses, assigned = self.detector.loss_from(first, stages, targets)
        return losses, torch.stack([stage.kernels for stage in stages]), assigned
