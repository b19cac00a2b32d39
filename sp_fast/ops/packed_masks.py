"""Binary masks, packed 32 cells per word."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sp_fast.ops import packing
from sp_fast.ops.checks import check_int
from sp_fast.ops.extension import register
from sp_fast.ops.packing import words_for


def _fake_pack(masks: Tensor) -> Tensor:
    height, width = masks.shape[-2:]
    return masks.new_empty(*masks.shape[:-2], words_for(height, width), dtype=torch.int32)


def _fake_unpack(words: Tensor, height: int, width: int) -> Tensor:
    return words.new_empty(*words.shape[:-1], height, width, dtype=torch.bool)


def _fake_areas(words: Tensor) -> Tensor:
    return words.new_empty(words.shape[:-1])


def _fake_boxes(words: Tensor, height: int, width: int) -> Tensor:
    return words.new_empty(*words.shape[:-1], 4)


_pack_masks = register("pack_masks", _fake_pack, packing.pack_masks)
_unpack_masks = register("unpack_masks", _fake_unpack, packing.unpack_masks)
_mask_areas = register("mask_areas", _fake_areas, packing.mask_areas)
_mask_boxes = register("mask_boxes", _fake_boxes, packing.mask_boxes)


class PackedMasks:
    """Binary masks of one size, packed 32 cells per word.

    Args:
        words: int32 [..., W32], W32 = ceil(height * width / 32). Bit k of word j is cell 32 j + k in
            row-major order; bits past the last cell must be 0 (not checked).
        height: rows of a mask, at least 0.
        width: columns of a mask, at least 0.

    Raises:
        TypeError: `words` is not an int32 tensor, or a size is not an int.
        ValueError: the last dimension of `words` does not fit the sizes.
    """

    __slots__ = ("height", "width", "words")

    def __init__(self, words: Tensor, height: int, width: int) -> None:
        check_int("height", height, 0)
        check_int("width", width, 0)
        if not isinstance(words, Tensor):
            raise TypeError(f"words: expected a tensor, got {type(words).__name__}")
        if words.dtype != torch.int32:
            raise TypeError(f"words: expected dtype int32, got {words.dtype}")
        expected = words_for(height, width)
        if words.dim() == 0 or words.shape[-1] != expected:
            raise ValueError(
                f"words: expected shape [..., {expected}] for masks of {height} x {width}, "
                f"got {list(words.shape)}"
            )
        self.words = words
        self.height = height
        self.width = width

    @classmethod
    def pack(cls, masks: Tensor) -> PackedMasks:
        """Pack boolean masks [..., H, W].

        Raises:
            TypeError: `masks` is not a bool tensor.
            ValueError: `masks` has fewer than two dimensions.
        """
        if not isinstance(masks, Tensor):
            raise TypeError(f"masks: expected a tensor, got {type(masks).__name__}")
        if masks.dtype != torch.bool:
            raise TypeError(f"masks: expected dtype bool, got {masks.dtype}; threshold them first")
        if masks.dim() < 2:
            raise ValueError(f"masks: expected shape [..., H, W], got {list(masks.shape)}")
        return cls(_pack_masks(masks), *masks.shape[-2:])

    def unpack(self) -> Tensor:
        """Unpack to bool [..., H, W]."""
        return _unpack_masks(self.words, self.height, self.width)

    def area(self) -> Tensor:
        """Number of cells inside each mask, int32 [...]."""
        return _mask_areas(self.words)

    def boxes(self) -> Tensor:
        """Tight boxes (xyxy, half-open, in cells), int32 [..., 4]; zeros for an empty mask."""
        return _mask_boxes(self.words, self.height, self.width)

    @property
    def shape(self) -> torch.Size:
        """The leading dimensions, without height and width."""
        return self.words.shape[:-1]

    @property
    def device(self) -> torch.device:
        """Device of the words."""
        return self.words.device

    def to(self, device: torch.device | str) -> PackedMasks:
        """Copy the masks to another device."""
        return PackedMasks(self.words.to(device), self.height, self.width)

    def __getitem__(self, index: Any) -> PackedMasks:
        """Index the leading dimensions."""
        index = index if isinstance(index, tuple) else (index,)
        if not any(i is Ellipsis for i in index):
            index = (*index, Ellipsis)
        full = (*index, slice(None))
        return PackedMasks(self.words[full], self.height, self.width)

    def __len__(self) -> int:
        """Size of the first leading dimension."""
        if not self.shape:
            raise TypeError("len(): expected at least one leading dimension, got a single mask")
        return self.words.shape[0]

    def __iter__(self):
        """Iterate over the first leading dimension."""
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return f"PackedMasks({list(self.shape)}, {self.height} x {self.width}, {self.device})"


def check_masks(name: str, masks: PackedMasks, rank: int | None = None) -> None:
    """Check that `masks` are PackedMasks with `rank` leading dimensions, if given (TypeError, ValueError)."""
    if not isinstance(masks, PackedMasks):
        raise TypeError(f"{name}: expected PackedMasks, got {type(masks).__name__}; use PackedMasks.pack")
    if rank is not None and len(masks.shape) != rank:
        raise ValueError(f"{name}: expected {rank} leading dimensions, got shape {list(masks.shape)}")
