"""ResNet-50 as Caffe has it, for published weights that stop before its last stage."""

from __future__ import annotations

from typing import Any

import sp_fast.models  # noqa: F401  (gives mmdet the ops it imports)

# isort: split
from mmdet.models.backbones import ResNet
from mmdet.registry import MODELS
from torch import nn
from torchvision.models import resnet50


@MODELS.register_module()
class CaffeResNet50(ResNet):
    """mmdet's ResNet-50 of style `caffe`, with Caffe's max-pooling: ceil mode and no padding.

    Takes BGR images in 0..255 less the mean.

    Attributes:
        name: of the architecture.
        complete_keys: parameter names of all four stages, so that a file's later stages are known.

    Args:
        num_stages: stages that are built, 1 to 4.
        frozen_stages: stages, from the stem on, that are not trained.
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
            style="caffe",
            **options,
        )
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=0, ceil_mode=True)
        self.complete_keys = frozenset(
            key for key in resnet50(weights=None).state_dict() if not key.startswith("fc.")
        )
