"""Networks that torchvision defines, without their classifiers, and ResNets as Caffe has them."""

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
# the last bottleneck belongs to the classifier.
MOBILENET_ENDS = (4, 7, 14, 18)
_CLASSIFIERS = ("fc.", "classifier.")


def layers(name: str, style: str = "pytorch", stage: int = 4) -> nn.Sequential:
    """The layers of one of NETWORKS up to the end of a stage, with torchvision's parameter names.

    Args:
        name: one of NETWORKS.
        style: "pytorch" for torchvision's own, or "caffe" (ResNets only, see :func:`to_caffe`).
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
    """Change a ResNet of torchvision's or mmdet's to Caffe's.

    A bottleneck's stride is in its first 1 x 1 convolution, and max-pooling has ceil mode and no padding.
    """
    resnet.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=0, ceil_mode=True)
    for block in resnet.modules():
        if hasattr(block, "conv3"):
            block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


@cache
def parameter_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters and buffers of a network by name, without the classifier's."""
    with torch.device("meta"):
        state = getattr(torchvision.models, name)(weights=None).state_dict()
    return {key: tuple(value.shape) for key, value in state.items() if not key.startswith(_CLASSIFIERS)}
