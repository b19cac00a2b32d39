"""Backbones of detectors with the parameter names of torchvision, as published weights have them."""

from __future__ import annotations

from typing import Any

from mmdet.models.backbones import ResNet
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from sp_fast.proposals.networks import MOBILENET_ENDS, layers, parameter_shapes, to_caffe


@MODELS.register_module()
class TorchvisionMobileNetV2(BaseModule):
    """torchvision's MobileNetV2 without its classifier; mmdet's own has other parameter names.

    Takes RGB images in 0..1 minus ImageNet's mean, divided by its standard deviation. Gives C2 to C5, of 24,
    32, 96 and 320 channels; the 1 x 1 convolution to 1280 channels belongs to the classifier and is left out.

    Args:
        frozen_stages: number of stages, from the stem on, that are not trained: 0 to 4.
        norm_eval: keep batch norm's running statistics in training.
        init_cfg: mmengine's config of the initialisation.
    """

    # With `complete_keys`, all published names: how `load_backbone_weights` recognises files.
    name = "mobilenet_v2"

    def __init__(self, frozen_stages: int = 0, norm_eval: bool = True, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg=init_cfg)
        if not 0 <= frozen_stages <= len(MOBILENET_ENDS):
            raise ValueError(f"frozen_stages: expected 0 to {len(MOBILENET_ENDS)}, got {frozen_stages}")
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.features = layers(self.name).features
        self.complete_keys = frozenset(parameter_shapes(self.name))
        for layer in self._frozen():
            layer.requires_grad_(False)

    def _frozen(self) -> nn.Sequential:
        return self.features[: MOBILENET_ENDS[self.frozen_stages - 1] if self.frozen_stages else 0]

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
            if i in MOBILENET_ENDS:
                maps.append(x)
        return tuple(maps)


@MODELS.register_module()
class CaffeResNet50(ResNet):
    """mmdet's ResNet-50 changed to Caffe's, for published weights that may stop before the last stage.

    Takes BGR images in 0..255 minus the mean.

    Args:
        num_stages: number of stages that are built, 1 to 4.
        frozen_stages: number of stages, from the stem on, that are not trained.
    """

    name = "resnet50"

    def __init__(self, num_stages: int = 4, frozen_stages: int = 1, **options: Any) -> None:
        super().__init__(
            depth=50,
            num_stages=num_stages,
            out_indices=tuple(range(num_stages)),
            strides=(1, 2, 2, 2)[:num_stages],
            dilations=(1, 1, 1, 1)[:num_stages],
            frozen_stages=frozen_stages,
            norm_cfg=dict(type="BN", requires_grad=True),
            norm_eval=True,
            **options,
        )
        to_caffe(self)
        self.complete_keys = frozenset(parameter_shapes(self.name))
