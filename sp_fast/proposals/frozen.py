"""The base of all frozen backbones: images in, features of one stage out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sp_fast.proposals.extents import Size
from sp_fast.weights import WeightsReport
from sp_fast.weights.layouts import Translated, translate


class Features(NamedTuple):
    """Features of a batch and the valid (unpadded) size of each map."""

    maps: Tensor  # [B, D, h, w]
    valid: Tensor  # int64 [B, 2], height and width in cells, on the device of maps
    sizes: list[Size]  # the same on the host


class Backbone(nn.Module):
    """A frozen network, always in eval mode, that maps normalised images to the features of one stage.

    Attributes:
        name, style, stage, padding: as given to `build_backbone`; a timm model's name includes its tag.
        stride: pixels per cell of the features.
        channels: number of channels of the features, D.
        mean, std: per channel, RGB, 0..255: `normalize` subtracts and divides by them.
        body: network; layers after `stage` are left out.
        complete_keys: parameter names of the whole network, including the layers left out.
        weights_report: report of loading the weights; None with random weights.
    """

    mean: Sequence[float] = (123.675, 116.28, 103.53)  # ImageNet's
    std: Sequence[float] = (58.395, 57.12, 57.375)

    def __init__(
        self,
        body: nn.Module,
        name: str,
        *,
        stride: int,
        channels: int,
        complete_keys: Collection[str],
        style: str = "pytorch",
        stage: int = 4,
        padding: str = "zeros",
    ) -> None:
        super().__init__()
        self.body, self.name, self.style, self.stage, self.padding = body, name, style, stage, padding
        self.stride, self.channels, self.complete_keys = stride, channels, complete_keys
        self.weights_report: WeightsReport | None = None
        for layer in body.modules():
            if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
                layer.padding_mode = padding
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Backbone:
        """Stay in eval mode: the features must not depend on the batch."""
        return super().train(False)

    def normalize(self, images: Tensor) -> Tensor:
        """Normalise RGB images [..., 3, H, W], uint8 or floating point in 0..255; returns floating point."""
        x = checked(images)
        mean, std = (_per_channel(tuple(values), x.dtype, x.device) for values in (self.mean, self.std))
        return (x - mean) / std

    def translate(self, tensors: Mapping[str, Tensor]) -> Translated:
        """Give the tensors of a checkpoint the names of `body`'s parameters."""
        return translate(tensors, self.complete_keys)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images [B, 3, H, W] -> features [B, D, h, w]."""
        return self.body(images)

    def features(self, images: Sequence[Tensor]) -> Features:
        """Compute features of images of any sizes; they do not depend on the rest of the batch.

        Args:
            images: [3, H, W] each, RGB, uint8 or floating point in 0..255, on the backbone's device.
        """
        raise NotImplementedError


@lru_cache
def _per_channel(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The same values [3, 1, 1] on a device, copied there once."""
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device).reshape(3, 1, 1)


def checked(images: Tensor) -> Tensor:
    """Images as floating point.

    Raises:
        ValueError: not [..., 3, H, W].
    """
    if images.ndim < 3 or images.shape[-3] != 3:
        raise ValueError(
            f"images: expected [..., 3, H, W] in RGB, got a tensor of shape {list(images.shape)}"
        )
    return images if images.is_floating_point() else images.to(torch.get_default_dtype())
