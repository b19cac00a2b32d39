"""Instance masks as bits in a tensor, which is what a loader's process passes on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.ops.roi_align import roi_align
from mmdet.structures.mask import BitmapMasks
from torch import Tensor

from sp_fast.ops import PackedMasks
from sp_fast.transfers import to_device

STRIDE = 4


class PackedBitmaps(BitmapMasks):
    """mmdet's BitmapMasks as bits: of every pixel, or of the four that count for a cell of stride 4.

    Bilinear resizing by 1/4 takes the mean of the 2 x 2 pixels in the middle of each block of 4 x 4. Only
    those pixels are there in a `quarter`, so all that is taken from it is at stride 4.

    Args:
        packed: the bits, PackedMasks `[n]`, transposed: `[w, h]` pixels, or with `quarter` the middle pixels
            of ceil(w / 4) x ceil(h / 4) blocks, two rows and columns for each block.
        height: rows of the masks in pixels; the masks are 0 beyond their bits.
        width: columns of the masks in pixels.
        quarter: whether the bits are those of the middle pixels.
    """

    def __init__(self, packed: PackedMasks, height: int, width: int, *, quarter: bool) -> None:
        self.packed, self.quarter = packed, quarter
        self.height, self.width = height, width
        self._cells: Tensor | None = None

    def __len__(self) -> int:
        return len(self.packed)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.masks)

    def __repr__(self) -> str:
        kind = "quarter" if self.quarter else "full"
        return f"PackedBitmaps({len(self)}, height={self.height}, width={self.width}, {kind})"

    def __getitem__(self, index: Any) -> PackedBitmaps:
        chosen = torch.arange(len(self))[index].reshape(-1).to(self.packed.device)
        return PackedBitmaps(self.packed[chosen], self.height, self.width, quarter=self.quarter)

    def to(self, device: torch.device | str, *args: Any, **kwargs: Any) -> PackedBitmaps:
        """Copies the bits to a device without waiting for it; other arguments are ignored."""
        words = to_device(self.packed.words, torch.device(device))
        packed = PackedMasks(words, self.packed.height, self.packed.width)
        return PackedBitmaps(packed, self.height, self.width, quarter=self.quarter)

    def pad(self, out_shape: tuple[int, int], pad_val: int = 0) -> BitmapMasks:
        """See `BaseInstanceMasks.pad`; with zeros, it takes no time."""
        if pad_val:
            return super().pad(out_shape, pad_val)
        return PackedBitmaps(self.packed, *out_shape, quarter=self.quarter)

    def cells(self) -> Tensor:
        """The masks on the device of their bits, kept for the next call.

        Returns:
            uint8 `[n, height, width]` of 0 and 1; with `quarter` the number of pixels inside, 0..4,
            `[n, ceil(height / 4), ceil(width / 4)]`.
        """
        if self._cells is None:
            bits = self.packed.unpack().view(torch.uint8)
            stride = STRIDE if self.quarter else 1
            if self.quarter:
                bits = bits[:, ::2] + bits[:, 1::2]
                bits = bits[:, :, ::2] + bits[:, :, 1::2]
            rows, columns = -(-self.height // stride), -(-self.width // stride)
            below, right = rows - bits.shape[2], columns - bits.shape[1]
            self._cells = F.pad(bits, (0, below, 0, right)).transpose(1, 2)
        return self._cells

    @property
    def masks(self) -> np.ndarray:  # type: ignore[override]
        """The masks as uint8 `[n, height, width]`.

        Raises:
            TypeError: only their cells of stride 4 are there.
        """
        if self.quarter:
            raise TypeError(
                "masks: expected masks of full size, got their cells of stride 4; set "
                "dict(type='PackInstances', masks='full') at the end of the training pipeline"
            )
        return self.cells().cpu().numpy()

    def to_ndarray(self) -> np.ndarray:
        """See `BaseInstanceMasks.to_ndarray`."""
        return self.masks

    def to_tensor(self, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """See `BaseInstanceMasks.to_tensor`; of a `quarter`, the cells that are at least half inside."""
        cells = self.cells().to(device)
        return (cells >= STRIDE // 2 if self.quarter else cells).to(dtype)

    @property
    def areas(self) -> np.ndarray:
        """See `BaseInstanceMasks.areas`; in pixels of the bits."""
        return self.packed.area().cpu().numpy()

    def crops(self, boxes: Tensor, index: Tensor, size: tuple[int, int]) -> Tensor:
        """Resizes parts of the masks to one size by RoIAlign, as mmdet makes mask targets of boxes.

        Args:
            boxes: xyxy boxes in pixels, fp32 `[k, 4]`, on the device of the bits.
            index: mask of each box, int64 `[k]`.
            size: rows and columns of the result.

        Returns:
            fp32 `[k, *size]`, the share of each cell that is inside.
        """
        if self.quarter:
            return crops_of(self.cells(), STRIDE, boxes, index, size) / 4
        return crops_of(self.cells(), 1, boxes, index, size)

    def crop_and_resize(
        self,
        bboxes: Any,
        out_shape: tuple[int, int],
        inds: Any,
        device: torch.device | str = "cpu",
        interpolation: str = "bilinear",
        binarize: bool = True,
    ) -> BitmapMasks:
        """See `BaseInstanceMasks.crop_and_resize`; the masks are not copied to the device again."""
        if not len(self) or not len(bboxes):
            return BitmapMasks(np.empty((0, *out_shape), np.uint8), *out_shape)
        boxes, index = (torch.as_tensor(one).to(self.packed.device) for one in (bboxes, inds))
        found = self.crops(boxes, index, out_shape)
        return BitmapMasks((found >= 0.5 if binarize else found).cpu().numpy(), *out_shape)


def crops_of(cells: Tensor, stride: int, boxes: Tensor, index: Tensor, size: tuple[int, int]) -> Tensor:
    """Resizes parts of masks `[n, h, w]` with `stride` pixels per cell; see `PackedBitmaps.crops`."""
    regions = torch.cat([index[:, None].to(boxes.dtype), boxes], 1)
    values = cells.to(boxes.dtype)[:, None].contiguous()
    return roi_align(values, regions, size, 1 / stride, 0, "avg", True).squeeze(1)
