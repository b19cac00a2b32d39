"""Networks that torchvision defines, without their classifiers, and ResNets as Caffe has them."""

from __future__ import annotations

from functools import cache

import torch
import torchvision
from torch import nn

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
NETWORKS = (*RESNETS, "mobilenet_v2")
# End of each stage (strides 4, 8, 16, 32) in torchvision's `features`, and its channels. The convolution to
# 1280 channels after the last bottleneck belongs to the classifier.
MOBILENET_ENDS = (4, 7, 14, 18)
MOBILENET_CHANNELS = (24, 32, 96, 320)
_CLASSIFIERS = ("fc.", "classifier.")


def mobilenet_features(stages: int = 4) -> nn.Sequential:
    """The layers of MobileNetV2 up to the end of stage 1 to 4."""
    return torchvision.models.mobilenet_v2(weights=None).features[: MOBILENET_ENDS[stages - 1]]


def to_caffe(resnet: nn.Module) -> None:
    """Change a ResNet of torchvision's or mmdet's to Caffe's.

    A bottleneck's stride is in its first 1 x 1 convolution, and max-pooling has ceil mode and no padding.
    """
    resnet.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=0, ceil_mode=True)
    for layer in ("layer2", "layer3", "layer4"):
        block = getattr(resnet, layer)[0] if hasattr(resnet, layer) else None
        if hasattr(block, "conv3"):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


@cache
def parameter_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters and buffers of a network by name, without the classifier's."""
    with torch.device("meta"):
        state = getattr(torchvision.models, name)(weights=None).state_dict()
    return {key: tuple(value.shape) for key, value in state.items() if not key.startswith(_CLASSIFIERS)}
