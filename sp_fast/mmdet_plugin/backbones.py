"""MobileNetV2 as a detector's backbone, with torchvision's parameter names."""

from __future__ import annotations

from typing import Any

from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

# End of each stage (strides 4, 8, 16, 32) in torchvision's `features`.
STAGE_ENDS = (4, 7, 14, 18)


@MODELS.register_module()
class TorchvisionMobileNetV2(BaseModule):
    """torchvision's MobileNetV2 without its classifier; mmdet's own has other parameter names.

    Takes RGB images in 0..1 less ImageNet's mean, divided by its standard deviation. Gives C2 to C5, of 24,
    32, 96 and 320 channels; the 1 x 1 convolution to 1280 channels belongs to the classifier and is left out.

    Attributes:
        name: of the architecture.
        body: itself; where :func:`sp_fast.weights.backbone.load_backbone_weights` finds the parameters.
        complete_keys: the parameter names, with those of the convolution left out.
        weights_report: what loading published weights did; None before.

    Args:
        frozen_stages: stages, from the stem on, that are not trained: 0 to 4.
        norm_eval: batch norm keeps its running statistics while training.
        init_cfg: config of the initialisation.
    """

    name = "mobilenet_v2"

    def __init__(self, frozen_stages: int = 0, norm_eval: bool = True, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg=init_cfg)
        if not 0 <= frozen_stages <= len(STAGE_ENDS):
            raise ValueError(f"frozen_stages: expected 0 to {len(STAGE_ENDS)}, got {frozen_stages}")
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        whole = mobilenet_v2(weights=None).features
        self.features = whole[: STAGE_ENDS[-1]]
        self.complete_keys = frozenset(f"features.{name}" for name in whole.state_dict())
        self.weights_report: Any = None
        for layer in self._frozen():
            layer.requires_grad_(False)

    @property
    def body(self) -> nn.Module:
        """This module."""
        return self

    def _frozen(self) -> nn.Sequential:
        return self.features[: STAGE_ENDS[self.frozen_stages - 1] if self.frozen_stages else 0]

    def train(self, mode: bool = True) -> TorchvisionMobileNetV2:
        """Keeps frozen stages, and with `norm_eval` every batch norm, in eval mode."""
        super().train(mode)
        for layer in self._frozen():
            layer.eval()
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """C2, C3, C4, C5 of normalised images `[B, 3, H, W]`."""
        maps = []
        x = images
        for i, layer in enumerate(self.features, start=1):
            x = layer(x)
            if i in STAGE_ENDS:
                maps.append(x)
        return tuple(maps)
