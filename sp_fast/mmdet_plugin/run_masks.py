"""Instance masks as run lengths: resized, flipped, cropped and padded without drawing them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import mmcv
import numpy as np
import torch
from mmdet.structures.bbox import HorizontalBoxes
from mmdet.structures.mask import BitmapMasks
from torch import Tensor

from sp_fast.knet.packed_bitmaps import STRIDE, PackedBitmaps
from sp_fast.ops import PackedMasks
from sp_fast.ops.sample_runs import sample_runs


class RunMasks(BitmapMasks):
    """mmdet's BitmapMasks, kept as the run lengths of the annotation file.

    Resizing (nearest neighbour, as mmdet resizes masks), flips, crops and padding only choose other rows and
    columns of the masks; the result is that of BitmapMasks, bit by bit. All other transforms draw the masks
    first, and give BitmapMasks.

    Attributes:
        rows, columns: row and column of the annotated masks for each row and column, int32 [height] and
            [width]; -1 outside.

    Args:
        counts: the masks' compressed run lengths (pycocotools).
        height: rows of the annotated masks.
        width: columns of the annotated masks.
    """

    def __init__(self, counts: Sequence[bytes], height: int, width: int) -> None:
        self.counts = list(counts)
        self._size = height, width
        self.rows: np.ndarray = np.arange(height, dtype=np.int32)
        self.columns: np.ndarray = np.arange(width, dtype=np.int32)

    def _with(self, rows: np.ndarray, columns: np.ndarray) -> RunMasks:
        other = RunMasks(self.counts, *self._size)
        other.rows, other.columns = rows, columns
        return other

    @property
    def height(self) -> int:  # type: ignore[override]
        """Rows of the masks."""
        return len(self.rows)

    @property
    def width(self) -> int:  # type: ignore[override]
        """Columns of the masks."""
        return len(self.columns)

    def __len__(self) -> int:
        return len(self.counts)

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.masks)

    def __repr__(self) -> str:
        return f"RunMasks(num_masks={len(self)}, height={self.height}, width={self.width})"

    def __getitem__(self, index: Any) -> RunMasks:
        other = self._with(self.rows, self.columns)
        other.counts = [self.counts[k] for k in np.arange(len(self))[index].reshape(-1)]
        return other

    def packed(self, rows: np.ndarray | None = None, columns: np.ndarray | None = None) -> PackedMasks:
        """The masks at some of their rows and columns, default all, as `PackedMasks` `[n]`, transposed.

        Args:
            rows: int64 [h]; a row beyond the masks is empty.
            columns: int64 [w]; the same for columns.
        """
        text = torch.frombuffer(bytearray(b"".join(self.counts) or b"0"), dtype=torch.uint8)
        ends = torch.tensor([len(one) for one in self.counts], dtype=torch.int64).cumsum(0)
        chosen = (_lines(self.rows, rows), _lines(self.columns, columns))
        return sample_runs(text, ends, *self._size, *chosen)

    @property
    def masks(self) -> np.ndarray:  # type: ignore[override]
        """The masks as uint8 [n, height, width], drawn anew each time."""
        return np.ascontiguousarray(self.packed().unpack().view(torch.uint8).numpy().transpose(0, 2, 1))

    def rescale(self, scale: Any, interpolation: str = "nearest") -> BitmapMasks:
        """See `BaseInstanceMasks.rescale`."""
        width, height = mmcv.rescale_size((self.width, self.height), scale)
        return self.resize((height, width), interpolation)

    def resize(self, out_shape: tuple[int, int], interpolation: str = "nearest") -> BitmapMasks:
        """See `BaseInstanceMasks.resize`."""
        if interpolation != "nearest":
            return super().resize(out_shape, interpolation)
        # As the pixels of a mask are resized, whatever the rule is by which a nearest one is chosen.
        rows = mmcv.imresize(self.rows[:, None], (1, out_shape[0]), interpolation="nearest")
        columns = mmcv.imresize(self.columns[None], (out_shape[1], 1), interpolation="nearest")
        return self._with(rows.reshape(-1), columns.reshape(-1))

    def flip(self, flip_direction: str = "horizontal") -> BitmapMasks:
        """See `BaseInstanceMasks.flip`."""
        assert flip_direction in ("horizontal", "vertical", "diagonal")
        rows = self.rows if flip_direction == "horizontal" else self.rows[::-1]
        columns = self.columns if flip_direction == "vertical" else self.columns[::-1]
        return self._with(rows, columns)

    def pad(self, out_shape: tuple[int, int], pad_val: int = 0) -> BitmapMasks:
        """See `BaseInstanceMasks.pad`."""
        if pad_val:
            return super().pad(out_shape, pad_val)
        return self._placed(*out_shape, 0, 0)

    def expand(self, expanded_h: int, expanded_w: int, top: int, left: int) -> BitmapMasks:
        """See `BaseInstanceMasks.expand`."""
        return self._placed(expanded_h, expanded_w, top, left)

    def _placed(self, height: int, width: int, top: int, left: int) -> RunMasks:
        sides = ((self.rows, height, top), (self.columns, width, left))
        return self._with(
            *(np.pad(one, (at, side - at - len(one)), constant_values=-1) for one, side, at in sides)
        )

    def crop(self, bbox: np.ndarray) -> BitmapMasks:
        """See `BaseInstanceMasks.crop`."""
        x0, x1 = np.clip(bbox[0::2], 0, self.width)
        y0, y1 = np.clip(bbox[1::2], 0, self.height)
        return self._with(self.rows[y0 : max(y1, y0 + 1)], self.columns[x0 : max(x1, x0 + 1)])

    @property
    def areas(self) -> np.ndarray:
        """See `BaseInstanceMasks.areas`."""
        return self.packed().area().numpy()

    def get_bboxes(self, dst_type: Any = "hbb") -> Any:
        """See `BaseInstanceMasks.get_bboxes`."""
        if dst_type is not HorizontalBoxes:
            return super().get_bboxes(dst_type)
        return HorizontalBoxes(self.packed().boxes()[:, [1, 0, 3, 2]].float())

    def to_ndarray(self) -> np.ndarray:
        """See `BaseInstanceMasks.to_ndarray`."""
        return self.masks

    @classmethod
    def cat(cls, masks: Sequence[BitmapMasks]) -> BitmapMasks:
        """See `BaseInstanceMasks.cat`."""
        return BitmapMasks.cat(masks)


def _lines(lines: np.ndarray, chosen: np.ndarray | None) -> Tensor:
    """The chosen lines, -1 for those beyond, int64."""
    if chosen is not None:
        lines = np.append(lines, -1)[np.minimum(chosen, len(lines))]
    return torch.from_numpy(lines.astype(np.int64))


def packed_bitmaps(masks: BitmapMasks, *, quarter: bool) -> PackedBitmaps:
    """Packs masks of a pipeline for the model; see `PackedBitmaps`."""
    rows, columns = (_middle(side) if quarter else None for side in (masks.height, masks.width))
    if isinstance(masks, RunMasks):
        packed = masks.packed(rows, columns)
    else:
        bitmaps = masks.masks
        for axis, chosen in ((1, rows), (2, columns)):
            if chosen is not None:
                side = bitmaps.shape[axis]
                there = np.where(chosen < side, 1, 0).reshape([-1 if k == axis else 1 for k in range(3)])
                bitmaps = bitmaps.take(np.minimum(chosen, side - 1), axis) * there
        packed = PackedMasks.pack(torch.from_numpy(bitmaps.transpose(0, 2, 1) != 0))
    return PackedBitmaps(packed, masks.height, masks.width, quarter=quarter)


def _middle(side: int) -> np.ndarray:
    """The two middle lines of each block of four; the last ones may lie beyond `side`."""
    block, line = np.divmod(np.arange(-(-side // STRIDE) * 2), 2)
    return STRIDE * block + 1 + line
