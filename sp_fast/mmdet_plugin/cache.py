"""Images in memory as they are before the first random transform: decoded and resized once."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import mmcv
import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.structures.bbox import BaseBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.dist import is_main_process

from sp_fast.data.images import BrokenImageError
from sp_fast.mmdet_plugin.memory import CacheError, check_fits
from sp_fast.progress import RunProgress

# Transforms that give the same result each time.
FIXED = ("ReadImage", "LoadAnnotations", "Resize", "FixShapeResize", "FilterAnnotations")
THREADS = 8

_EMPTY = object()


class _Bits(NamedTuple):
    """Masks with 8 pixels a byte."""

    packed: np.ndarray
    shape: tuple[int, ...]

    @classmethod
    def pack(cls, masks: BitmapMasks) -> _Bits:
        return cls(np.packbits(masks.masks.reshape(-1)), (len(masks), masks.height, masks.width))

    def unpack(self) -> BitmapMasks:
        bits = np.unpackbits(self.packed, count=math.prod(self.shape))
        return BitmapMasks(bits.reshape(self.shape), *self.shape[1:])


class ImageCache:
    """The results of the fixed beginning of a data set's pipeline.

    Attributes:
        rest: the transforms after it, which run each time.

    Args:
        transforms: of the pipeline.
        load: what the annotations say about image i, the pipeline's input.
        sizes: height and width of each image's file.
        masks: masks of each image.
        seed_channels: of each mask's seed.

    Raises:
        CacheError: the pipeline does not begin with ReadImage, or too little memory is free.
    """

    def __init__(
        self,
        transforms: Sequence[Any],
        load: Callable[[int], dict],
        sizes: Sequence[tuple[int, int]],
        masks: Sequence[int],
        seed_channels: int,
    ) -> None:
        names = [type(one).__name__ for one in transforms]
        count = next((i for i, name in enumerate(names) if name not in FIXED), len(names))
        if names[:1] != ["ReadImage"]:
            raise CacheError(
                f"cache='ram': expected a pipeline that begins with ReadImage, got {', '.join(names)}"
            )
        self._fixed, self.rest = Compose(list(transforms[:count])), Compose(list(transforms[count:]))
        self._annotations_read = "LoadAnnotations" not in names[count:]
        self._load = load
        self._kept: list[Any] = [_EMPTY] * len(sizes)
        if is_main_process():
            resized = [_resized(transforms[:count], *size) for size in sizes]
            # Boxes, labels and the like are within the margin of a kilobyte.
            need = sum(
                1024 + 3 * height * width + number * (-(-height * width // 8) + 4 * seed_channels)
                for (height, width), number in zip(resized, masks, strict=True)
            )
            what = f"{len(sizes)} decoded, resized images and their masks"
            check_fits(what, need, torch.device("cpu"), "resize to less, or leave --cache out")

    def fill(self) -> None:
        """Makes all that is not there yet, with threads."""
        left = [i for i, one in enumerate(self._kept) if one is _EMPTY]
        workers = min(THREADS, os.cpu_count() or 1)
        with RunProgress("images") as progress, ThreadPoolExecutor(workers) as pool:
            for done, _ in enumerate(pool.map(self._make, left), start=1):
                if is_main_process():
                    progress(done, len(left))

    def __call__(self, index: int) -> dict | None:
        """A copy of the results of image `index`; None if the pipeline gave the image up.

        Raises:
            BrokenImageError: the image cannot be decoded.
        """
        if self._kept[index] is _EMPTY:
            self._make(index)
        kept = self._kept[index]
        if isinstance(kept, BrokenImageError):
            raise kept
        return kept and {key: _copied(value) for key, value in kept.items()}

    def _make(self, index: int) -> None:
        try:
            results = self._fixed(self._load(index))
        except BrokenImageError as error:
            self._kept[index] = error
            return
        if results is not None:
            if self._annotations_read:
                results.pop("instances", None)
            for key, value in results.items():
                if isinstance(value, BitmapMasks):
                    results[key] = _Bits.pack(value)
        self._kept[index] = results


def _copied(value: Any) -> Any:
    if isinstance(value, _Bits):
        return value.unpack()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, BaseBoxes):
        return value.clone()
    if isinstance(value, (str, int, float, tuple)):
        return value
    return copy.deepcopy(value)


def _resized(transforms: Sequence[Any], height: int, width: int) -> tuple[int, int]:
    """Height and width of an image after the transforms."""
    for one in transforms:
        name = type(one).__name__
        if name == "FixShapeResize":
            height, width = one.height, one.width
        elif name == "Resize":
            scale = one.scale
            if scale is None:
                factor = np.broadcast_to(one.scale_factor, 2)
                scale = int(width * factor[0] + 0.5), int(height * factor[1] + 0.5)
            width, height = mmcv.rescale_size((width, height), scale) if one.keep_ratio else scale
    return height, width
