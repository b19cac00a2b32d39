"""The valid (unpadded) part of each map of a padded batch, layer by layer.

Images in a batch are padded with zeros at the right and bottom. Without a batch, a convolution sees zeros
beyond the border of an image. In a batch, the padding is no longer zero after the first layer (bias, batch
norm), and its values leak into the image. `MaskedPadding` zeroes the padding before every layer with a kernel
larger than 1 x 1, or fills it with the values at the border where convolutions replicate these, so that the
features of an image do not depend on its padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sp_fast.transfers import to_device

Size = tuple[int, int]


def output_size(layer: nn.Module, size: Size) -> Size:
    """Output height and width of a convolution or pooling layer for a map of `size`."""
    names = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
    return _pooled(size, **{name: getattr(layer, name) for name in names if hasattr(layer, name)})


@lru_cache(4096)
def _pooled(size: Size, **geometry: Any) -> Size:
    """Size after pooling, which is that after a convolution of the same geometry too."""
    pooled = F.max_pool2d(torch.empty(1, 1, *size, device="meta"), **geometry)
    return _size_of(pooled)


class MaskedPadding:
    """Hooks on the layers of a backbone that keep padding from leaking into the images of a batch.

    Between `begin` and `end` of a batch, the padding of each image is filled before each layer with a kernel
    larger than 1 x 1, and `sizes_of` gives the valid sizes at the resolution of any map. Sizes are plain
    integers: nothing is read back from the device.

    Args:
        module: backbone.
        padding: "zeros" or "replicate", as beyond the border of a single image. Both are neutral for
            max-pooling: it follows a ReLU, and its windows reach into the image.
    """

    def __init__(self, module: nn.Module, padding: str = "zeros") -> None:
        self._padding = padding
        self._levels: dict[Size, list[Size]] = {}
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
                if layer.kernel_size not in (1, (1, 1)):
                    layer.register_forward_pre_hook(self._before)
                layer.register_forward_hook(self._after)

    def begin(self, sizes: Sequence[Size], padded: Size) -> None:
        """Start a batch of images of `sizes` that are padded to `padded`."""
        self._levels = {padded: list(sizes)}

    def end(self) -> None:
        """Forget the batch."""
        self._levels = {}

    def sizes_of(self, features: Tensor) -> list[Size]:
        """Valid height and width of each image at the resolution of features [B, D, h, w]."""
        return self._levels[_size_of(features)]

    def clear_padding(self, x: Tensor) -> Tensor:
        """Zero the padding of x [B, D, h, w], in place."""
        height, width = _size_of(x)
        for index, (h, w) in enumerate(self._levels.get((height, width), ())):
            if h < height:
                x[index, :, h:, :] = 0
            if w < width:
                x[index, :, :, w:] = 0
        return x

    def replicate_border(self, x: Tensor) -> Tensor:
        """Fill the padding of x [B, D, h, w] with the nearest values of each image, in place."""
        for index, (h, w) in enumerate(self._levels.get(_size_of(x), ())):
            x[index, :, h:] = x[index, :, h - 1 : h]
            x[index, :, :, w:] = x[index, :, :, w - 1 : w]
        return x

    def standardize(self, x: Tensor) -> Tensor:
        """Normalise x [B, D, h, w] to zero mean and unit variance per image and channel; padding is 0."""
        height, width = _size_of(x)
        sizes = self._levels.get((height, width), [(height, width)] * len(x))
        cells = x.new_tensor([h * w for h, w in sizes]).reshape(-1, 1, 1, 1)
        x = self.clear_padding(x)
        x = self.clear_padding(x - x.sum((2, 3), keepdim=True) / cells)
        deviation = (x.square().sum((2, 3), keepdim=True) / cells).sqrt()
        return x / deviation.clamp(min=1e-3)  # a constant channel becomes zero

    def _before(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        fill = self.clear_padding if self._padding == "zeros" else self.replicate_border
        fill(inputs[0])

    def _after(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        sizes = self._levels.get(_size_of(inputs[0]))
        if sizes is not None:
            self._levels[_size_of(output)] = [output_size(layer, size) for size in sizes]


def _size_of(x: Tensor) -> Size:
    return x.shape[-2], x.shape[-1]


def pad_batch(images: Sequence[Tensor]) -> tuple[Tensor, list[Size]]:
    """Stack images [3, h, w] of any sizes, padded with zeros at the right and bottom.

    Returns:
        The batch [B, 3, H, W] and each image's (height, width).
    """
    sizes = [_size_of(image) for image in images]
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    batch = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    for index, (image, (h, w)) in enumerate(zip(images, sizes, strict=True)):
        batch[index, :, :h, :w] = image
    return batch, sizes


def sizes_tensor(sizes: Sequence[Size], device: torch.device) -> Tensor:
    """Copy (height, width) pairs to the device as int64 [B, 2], without waiting for it."""
    return to_device(torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2), device)


def whole_maps(maps: Tensor) -> Tensor:
    """`valid` of maps [B, ..., H, W] without padding: int64 [B, 2], created on their device."""
    sides = [torch.full((len(maps),), side, dtype=torch.int64, device=maps.device) for side in _size_of(maps)]
    return torch.stack(sides, dim=1)


def inside(maps: Tensor, valid: Tensor) -> Tensor:
    """True in the valid part of maps [B, ..., H, W]: bool [B, H, W]."""
    rows, columns = (torch.arange(side, device=maps.device) for side in _size_of(maps))
    return (rows < valid[:, :1])[:, :, None] & (columns < valid[:, 1:])[:, None, :]


def prepared(features: Tensor, valid: Tensor | None, center: bool) -> Tensor:
    """Zero the features beyond the valid part and, with `center`, subtract the mean over that part."""
    size = whole_maps(features) if valid is None else valid.long()
    real = inside(features, size)[:, None]
    features = torch.where(real, features, 0)
    if center:
        cells = size.prod(1).reshape(-1, 1, 1, 1)
        mean = features.sum((2, 3), keepdim=True, dtype=torch.float32) / cells
        features = torch.where(real, features - mean.to(features.dtype), 0)
    return features
