"""Which part of each map of a padded batch is image, layer by layer.

An image in a batch is padded with zeros at the right and bottom. A convolution with padding sees zeros
beyond the border of an image alone, but after the first layer the padding of a batch holds values (bias,
batch norm) that leak back into the image. `MaskedPadding` sets the padding to zero again before every layer
that looks at neighbours, so that an image gives the same features alone and padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

Size = tuple[int, int]


def output_size(layer: nn.Module, size: Size) -> Size:
    """Height and width that a convolution or pooling layer makes of a map of `size`."""
    kernel, stride, padding, dilation = (_pair(getattr(layer, name, 1)) for name in _GEOMETRY)
    ceil = bool(getattr(layer, "ceil_mode", False))
    return tuple(  # type: ignore[return-value]
        _length(size[i], kernel[i], stride[i], padding[i], dilation[i], ceil) for i in range(2)
    )


_GEOMETRY = ("kernel_size", "stride", "padding", "dilation")


def _pair(value: Any) -> Size:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _length(size: int, kernel: int, stride: int, padding: int, dilation: int, ceil: bool) -> int:
    span = size + 2 * padding - dilation * (kernel - 1) - 1
    length = (-(-span // stride) if ceil else span // stride) + 1
    if ceil and (length - 1) * stride >= size + padding:  # no window may start in the padding at the end
        length -= 1
    return length


class MaskedPadding:
    """Hooks on the layers of a backbone that keep the padding of a batch out of its images.

    Between `begin` and `end` of a batch, what lies beyond each image's own size is zeroed before each layer
    with a kernel above 1 x 1, and `sizes_of` says the own sizes at any map's resolution. Zero is neutral for
    max-pooling too, as it follows a ReLU. Sizes are plain integers: nothing is read back from the device.
    """

    def __init__(self, module: nn.Module) -> None:
        self._levels: dict[Size, list[Size]] = {}
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
                if max(_pair(layer.kernel_size)) > 1:
                    layer.register_forward_pre_hook(self._before)
                layer.register_forward_hook(self._after)

    def begin(self, sizes: Sequence[Size], padded: Size) -> None:
        """Start a batch of images of `sizes` padded to `padded`."""
        self._levels = {padded: list(sizes)}

    def end(self) -> None:
        """Forget the batch."""
        self._levels = {}

    def sizes_of(self, features: Tensor) -> list[Size]:
        """The images' own height and width at the resolution of features [B, D, h, w]."""
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

    def standardize(self, x: Tensor) -> Tensor:
        """Each channel of each image of x [B, D, h, w] with zero mean and unit variance; the padding zero."""
        height, width = _size_of(x)
        sizes = self._levels.get((height, width), [(height, width)] * len(x))
        cells = x.new_tensor([h * w for h, w in sizes]).reshape(-1, 1, 1, 1)
        x = self.clear_padding(x)
        x = self.clear_padding(x - x.sum((2, 3), keepdim=True) / cells)
        deviation = (x.square().sum((2, 3), keepdim=True) / cells).sqrt()
        return x / deviation.clamp(min=1e-3)  # a channel that is constant stays zero

    def _before(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.clear_padding(inputs[0])

    def _after(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        sizes = self._levels.get(_size_of(inputs[0]))
        if sizes is not None:
            self._levels[_size_of(output)] = [output_size(layer, size) for size in sizes]


def _size_of(x: Tensor) -> Size:
    return x.shape[-2], x.shape[-1]


def pad_batch(images: Sequence[Tensor]) -> tuple[Tensor, list[Size]]:
    """Stack images [3, h, w] of any sizes, padded with zeros at the right and bottom.

    Returns:
        The batch [B, 3, H, W] and the images' own (height, width).
    """
    sizes = [_size_of(image) for image in images]
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    batch = images[0].new_zeros(len(images), images[0].shape[0], height, width)
    for index, (image, (h, w)) in enumerate(zip(images, sizes, strict=True)):
        batch[index, :, :h, :w] = image
    return batch, sizes


def sizes_tensor(sizes: Sequence[Size], device: torch.device) -> Tensor:
    """(height, width) pairs as int64 [B, 2] on the device, copied without waiting for it."""
    table = torch.tensor(sizes, dtype=torch.int64).reshape(-1, 2)
    if device.type == "cuda":
        table = table.pin_memory()
    return table.to(device, non_blocking=True)


def whole_maps(batch: int, height: int, width: int, device: torch.device) -> Tensor:
    """`valid` of maps without padding: int64 [batch, 2], filled on the device."""
    sides = [torch.full((batch,), side, dtype=torch.int64, device=device) for side in (height, width)]
    return torch.stack(sides, dim=1)
