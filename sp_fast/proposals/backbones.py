"""Frozen backbones that compute the features for saliency masks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sp_fast.ops.checks import check_choice
from sp_fast.proposals.extents import MaskedPadding, Size, pad_batch, sizes_tensor
from sp_fast.proposals.networks import NETWORKS, RESNETS, layers, parameter_shapes
from sp_fast.weights import WeightsReport, closest_network, load_backbone_weights

BACKBONES = (*NETWORKS, "random")
STYLES = ("pytorch", "caffe")
STAGES = (1, 2, 3, 4)
PADDINGS = ("zeros", "replicate")

_IMAGENET_MEAN = (123.675, 116.28, 103.53)  # RGB, 0..255
_IMAGENET_STD = (58.395, 57.12, 57.375)


class Features(NamedTuple):
    """Features of a batch and the valid (unpadded) size of each map."""

    maps: Tensor  # [B, D, h, w]
    valid: Tensor  # int64 [B, 2], height and width in cells, on the device of maps
    sizes: list[Size]  # the same on the host


class Backbone(nn.Module):
    """A frozen network, always in eval mode, that maps normalised images to the features of one stage.

    Attributes:
        name, style, stage, padding: as given to `build_backbone`.
        stride: pixels per cell of the features.
        channels: number of channels of the features, D.
        body: network with torchvision's parameter names; layers after `stage` are left out.
        complete_keys: parameter names of the whole network, including the layers left out.
        weights_report: report of loading the weights; None with random weights.
    """

    def __init__(
        self, body: nn.Module, name: str, style: str = "pytorch", stage: int = 4, padding: str = "zeros"
    ) -> None:
        super().__init__()
        self.body, self.name, self.style, self.stage, self.padding = body, name, style, stage, padding
        self.stride = 2 ** (stage + 1)
        self.channels = [layer for layer in body.modules() if isinstance(layer, nn.Conv2d)][-1].out_channels
        self.complete_keys = frozenset(parameter_shapes(name) if name in NETWORKS else ())
        self.weights_report: WeightsReport | None = None
        for layer in body.modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
                layer.padding_mode = padding
        self._masking = MaskedPadding(self, padding)
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Backbone:
        """Stay in eval mode: the features must not depend on the batch."""
        return super().train(False)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise RGB images [..., 3, H, W], uint8 or floating point in 0..255; returns floating point."""
        x = _checked(images)
        mean = x.new_tensor(_IMAGENET_MEAN).reshape(3, 1, 1)
        if self.style == "caffe":
            return (x - mean).flip(-3)
        return (x - mean) / x.new_tensor(_IMAGENET_STD).reshape(3, 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> features [B, D, h, w]."""
        return self.body(images)

    @torch.no_grad()
    def features(self, images: Sequence[Tensor]) -> Features:
        """Compute features of images of any sizes; they do not depend on the rest of the batch.

        Args:
            images: [3, H, W] each, RGB, uint8 or floating point in 0..255, on the backbone's device.
        """
        batch, sizes = pad_batch([self.normalize(image) for image in images])
        self._masking.begin(sizes, (batch.shape[-2], batch.shape[-1]))
        try:
            maps = self(batch)
            own = self._masking.sizes_of(maps)
        finally:
            self._masking.end()
        return Features(maps, sizes_tensor(own, maps.device), own)


class RandomBackbone(Backbone):
    """Two random 5 x 5 convolutions of 64 orthogonal filters, each with a ReLU, then 4 x 4 average pooling.

    It needs no downloaded weights and is good enough for saliency masks of simple textured scenes. The
    channels of the image, and of the features before pooling, have zero mean and unit variance per image.
    """

    def __init__(self, padding: str = "zeros") -> None:
        body = nn.Sequential()
        for inputs in (3, 64):
            layer = nn.Conv2d(inputs, 64, kernel_size=5, padding=2, bias=False)
            nn.init.orthogonal_(layer.weight)
            body.extend([layer, nn.ReLU(inplace=True)])
        body.append(nn.AvgPool2d(4))
        super().__init__(body, "random", stage=1, padding=padding)
        self.body[3].register_forward_hook(self._standardize)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise images [..., 3, H, W] to zero mean and unit variance per image and channel."""
        x = _checked(images)
        deviation, mean = torch.std_mean(x, dim=(-2, -1), keepdim=True, correction=0)
        return (x - mean) / deviation.clamp(min=1e-3)

    def _standardize(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return self._masking.standardize(output)


def _checked(images: Tensor) -> Tensor:
    if images.ndim < 3 or images.shape[-3] != 3:
        raise ValueError(
            f"images: expected [..., 3, H, W] in RGB, got a tensor of shape {list(images.shape)}"
        )
    return images if images.is_floating_point() else images.to(torch.get_default_dtype())


def backbone_of(path: str | os.PathLike[str]) -> str:
    """Find the name of the backbone in a checkpoint from its parameters.

    Raises:
        WeightsError: not a checkpoint, or not of a known backbone.
        FileNotFoundError: no such file.
    """
    return closest_network(path, {name: parameter_shapes(name) for name in NETWORKS})


def build_backbone(
    name: str,
    *,
    style: str = "pytorch",
    stage: int = 4,
    padding: str = "zeros",
    weights: str | os.PathLike[str] | None = None,
    allow_partial: bool = False,
    seed: int = 0,
) -> Backbone:
    """Build a frozen backbone in eval mode.

    Args:
        name: one of BACKBONES. `random` has one stage and takes no weights.
        style: "pytorch", or "caffe" (ResNets only).
        stage: stage whose output is used, 1 to 4 (strides 4, 8, 16 and 32).
        padding: what convolutions see beyond the border of the image, "zeros" or "replicate" (the values at
            the border). Zeros, as in training, often make cells along the border alike, which gives a mask.
        weights: checkpoint in any layout that `load_backbone_weights` reads; None: random weights.
        allow_partial: accept a checkpoint with missing parameters, which stay random.
        seed: random seed of the initial weights; the global random state is not changed.

    Raises:
        ValueError: unknown name, style, stage or padding, or a checkpoint that does not fit.
    """
    check_choice("backbone", name, BACKBONES)
    check_choice("style", style, STYLES)
    check_choice("padding", padding, PADDINGS)
    if stage not in STAGES:
        raise ValueError(f"stage: expected 1, 2, 3 or 4, got {stage!r}")
    if style == "caffe" and name not in RESNETS:
        raise ValueError(f"style: caffe is for {', '.join(RESNETS)} only, not for {name}")
    if name == "random" and weights is not None:
        raise ValueError("weights: the random backbone takes none; leave them out or choose another backbone")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "random":
            backbone: Backbone = RandomBackbone(padding)
        else:
            backbone = Backbone(layers(name, style, stage), name, style, stage, padding)
    if weights is not None:
        load_backbone_weights(backbone, weights, allow_partial=allow_partial)
    return backbone
