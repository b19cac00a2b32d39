"""The test pipeline of a detector as a module: resizing, normalisation and padding of a batch of images."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# OpenCV's fixed-point arithmetic: 11 bits for a weight, of which the sum keeps 2 until the last rounding.
_ONE = 2048
_AFTER_COLUMNS, _AFTER_ROWS, _LAST = 16, 65536, 4


class Prepared(NamedTuple):
    """A batch that is ready for a network.

    Attributes:
        pixels: float32 `[B, 3, h, w]`, normalised, and padded at the bottom and on the right.
        height: height of the images within it.
        width: width of the images within it.
    """

    pixels: Tensor
    height: int
    width: int


class Preprocessing(nn.Module):
    """Resizes, normalises and pads RGB images, uint8 `[B, H, W, 3]`, as mmdet's pipeline does, bit for bit.

    Resizing is that of `Resize(scale, keep_ratio=True)`: OpenCV's bilinear interpolation of uint8. All sizes
    are computed from those of the input, so that `torch.export` keeps them dynamic.

    Args:
        scale: largest longer and shorter side, in either order.
        preprocessor: the detector's `DetDataPreprocessor`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, scale: tuple[int, int], preprocessor: Any) -> None:
        super().__init__()
        self.longer, self.shorter = float(max(scale)), float(min(scale))
        self.divisor = int(preprocessor.pad_size_divisor)
        self.pad_value = float(preprocessor.pad_value)
        # The pipeline gives BGR, which the preprocessor may turn into RGB.
        self.reverse = not preprocessor._channel_conversion
        normalize = preprocessor._enable_normalize
        self.register_buffer("mean", preprocessor.mean.clone() if normalize else torch.zeros(3, 1, 1))
        self.register_buffer("std", preprocessor.std.clone() if normalize else torch.ones(3, 1, 1))

    def forward(self, images: Tensor) -> Prepared:
        """Prepares RGB images, uint8 `[B, H, W, 3]`."""
        device = images.device
        height, width = self._resized_size(images)
        rows, columns = self._padded(height), self._padded(width)
        pixels = _resize(images, height, width, rows, columns).permute(0, 3, 1, 2).float()
        if self.reverse:
            pixels = pixels.flip(1)
        pixels = (pixels - self.mean) / self.std
        inside = (torch.arange(rows, device=device) < height)[:, None]
        inside = inside & (torch.arange(columns, device=device) < width)
        pixels = torch.where(inside, pixels, self.pad_value)
        return Prepared(pixels, _size(height, rows), _size(width, columns))

    def _resized_size(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Height and width, int64 scalars, in double precision and the order of operations of mmcv."""
        size = torch.stack(
            [
                torch.scalar_tensor(side, dtype=torch.float64, device=images.device)
                for side in images.shape[1:3]
            ]
        )
        factor = torch.minimum(self.longer / size.max(), self.shorter / size.min())
        height, width = (size * factor + 0.5).long().unbind()
        return height, width

    def _padded(self, side: Tensor) -> int:
        # A multiple of an unknown integer, rather than an unknown integer: shapes further on stay provable.
        return self.divisor * _size(torch.div(side + self.divisor - 1, self.divisor, rounding_mode="floor"))


def _size(side: Tensor, largest: int | None = None) -> int:
    """The value of a tensor as a size; in `torch.export`, an unknown one."""
    size: Any = side.item()  # int() would fix it when tracing
    torch._check(size >= 1)
    if largest is not None:
        torch._check(size <= largest)
    return size


def _resize(images: Tensor, height: Tensor, width: Tensor, rows: int, columns: int) -> Tensor:
    """Images `[B, H, W, 3]` resized to height x width, int32 `[B, rows, columns, 3]`, arbitrary outside."""
    left, right, left_weight, right_weight = _neighbours(images.shape[2], width, columns)
    # Beyond the border OpenCV repeats the last column with all of the weight, but blends the last row.
    outside = (left < 0) | (right >= images.shape[2])
    right_weight = torch.where(outside, 0, right_weight)
    left_weight = torch.where(outside, _ONE, left_weight)
    top, bottom, top_weight, bottom_weight = _neighbours(images.shape[1], height, rows)

    pixels = images.to(torch.int32)
    pixels = _take(pixels, 2, left) * left_weight[:, None] + _take(pixels, 2, right) * right_weight[:, None]
    pixels = _floor(pixels, _AFTER_COLUMNS)
    pixels = _floor(_take(pixels, 1, top) * top_weight[:, None, None], _AFTER_ROWS) + _floor(
        _take(pixels, 1, bottom) * bottom_weight[:, None, None], _AFTER_ROWS
    )
    return _floor(pixels + 2, _LAST)


def _neighbours(size: int, new_size: Tensor, length: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For `length` target cells, the two source cells (perhaps outside) and their int32 weights."""
    target = torch.arange(length, dtype=torch.float64, device=new_size.device)
    step = 1.0 / (new_size.double() / size)
    place = ((target + 0.5) * step - 0.5).float()
    before = place.floor()
    share = place - before
    weights = [(part * _ONE).round().to(torch.int32) for part in (1 - share, share)]
    return before.long(), before.long() + 1, weights[0], weights[1]


def _take(pixels: Tensor, dim: int, index: Tensor) -> Tensor:
    return pixels.index_select(dim, index.clamp(0, pixels.shape[dim] - 1))


def _floor(pixels: Tensor, divisor: int) -> Tensor:
    return torch.div(pixels, divisor, rounding_mode="floor")
