"""torchvision's networks without their classifiers, and the Caffe variant of its ResNets."""

from __future__ import annotations

from collections import OrderedDict
from functools import cache
from itertools import islice

import torch
import torchvision
from torch import nn

RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
NETWORKS = (*RESNETS, "mobilenet_v2")
# End of each stage (strides 4, 8, 16, 32) in torchvision's `features`. The convolution to 1280 channels after
# the last bottleneck counts as part of the classifier.
MOBILENET_ENDS = (4, 7, 14, 18)
_CLASSIFIERS = ("fc.", "classifier.")


def layers(name: str, style: str = "pytorch", stage: int = 4) -> nn.Sequential:
    """Build the layers of a network up to the end of a stage, with torchvision's parameter names.

    Args:
        name: one of NETWORKS.
        style: "pytorch" for torchvision's layers, or "caffe" (ResNets only, see `to_caffe`).
        stage: 1 to 4; strides 4, 8, 16 and 32.
    """
    whole = getattr(torchvision.models, name)(weights=None)
    if name not in RESNETS:
        return nn.Sequential(OrderedDict(features=whole.features[: MOBILENET_ENDS[stage - 1]]))
    if style == "caffe":
        to_caffe(whole)
    # In torchvision's order: conv1, bn1, relu, maxpool, layer1, ...
    return nn.Sequential(OrderedDict(islice(whole.named_children(), 4 + stage)))


def to_caffe(resnet: nn.Module) -> None:
    """Turn a ResNet of torchvision or mmdet into Caffe's variant, in place.

    A bottleneck's stride moves to its first 1 x 1 convolution; max-pooling has ceil mode and no padding.
    """
    resnet.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=0, ceil_mode=True)
    for block in resnet.modules():
        if hasattr(block, "conv3"):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


@cache
def parameter_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a network's parameters and buffers by name, without the classifier."""
    with torch.device("meta"):
        state = getattr(torchvision.models, name)(weights=None).state_dict()
    return {key: tuple(value.shape) for key, value in state.items() if not key.startswith(_CLASSIFIERS)}
