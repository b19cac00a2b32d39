"""Where published weights of backbones are found."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """Published weights and where to download them.

    `checksum` is the kind of hash and its first digits, as the publisher gives them; empty if it gives none.
    """

    what: str
    address: str
    checksum: str = ""


PUBLISHED = {
    "mobilenet_v2": Published(
        "MobileNetV2, supervised on ImageNet (torchvision)",
        "https://download.pytorch.org/models/mobilenet_v2-b0353104.pth",
        "sha256 b0353104",
    ),
    "imagenet": Published(
        "ResNet-50, supervised on ImageNet (torchvision)",
        "https://download.pytorch.org/models/resnet50-0676ba61.pth",
        "sha256 0676ba61",
    ),
    "densecl": Published(
        "ResNet-50, DenseCL on ImageNet (mmselfsup)",
        "https://download.openmmlab.com/mmselfsup/1.x/densecl/densecl_resnet50_8xb32-coslr-200e_in1k/"
        "densecl_resnet50_8xb32-coslr-200e_in1k_20220825-3078723b.pth",
        "sha256 3078723b",
    ),
    "moco_v2": Published(
        "ResNet-50, MoCo-v2 on ImageNet, 800 epochs",
        "https://dl.fbaipublicfiles.com/moco/moco_checkpoints/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar",
        "md5 a04e12f8",
    ),
    "swav": Published(
        "ResNet-50, SwAV on ImageNet, 800 epochs",
        "https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar",
    ),
}


def where_to_find() -> str:
    """A line for each of the published weights, to follow an error message."""
    return "\n".join(f"  {one.what}:\n    {one.address}" for one in PUBLISHED.values())
