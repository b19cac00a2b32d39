"""Where published weights of backbones are found."""

from __future__ import annotations

# Name -> what it is, and its address.
PUBLISHED: dict[str, tuple[str, str]] = {
    "mobilenet_v2": (
        "MobileNetV2, supervised on ImageNet (torchvision)",
        "https://download.pytorch.org/models/mobilenet_v2-b0353104.pth",
    ),
    "resnet50": (
        "ResNet-50, supervised on ImageNet (torchvision)",
        "https://download.pytorch.org/models/resnet50-0676ba61.pth",
    ),
    "densecl": (
        "ResNet-50, DenseCL on COCO or ImageNet, as in the paper: links on the page",
        "https://github.com/WXinlong/DenseCL",
    ),
    "moco_v2": (
        "ResNet-50, MoCo-v2 on ImageNet",
        "https://dl.fbaipublicfiles.com/moco/moco_checkpoints/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar",
    ),
    "swav": (
        "ResNet-50, SwAV on ImageNet",
        "https://dl.fbaipublicfiles.com/deepcluster/swav_800ep_pretrain.pth.tar",
    ),
}


def where_to_find() -> str:
    """A line for each of the published weights, to follow an error message."""
    return "\n".join(f"  {what}:\n    {address}" for what, address in PUBLISHED.values())
