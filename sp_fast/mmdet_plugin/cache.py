"""Keeps images in memory as they are before the first random transform: decoded and resized once."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import mmcv
import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.structures.bbox import BaseBoxes
from mmdet.structures.mask import BitmapMasks
from mmengine.dist import is_main_process

from sp_fast.data.images import BrokenImageError
from sp_fast.mmdet_plugin.run_masks import RunMasks
from sp_fast.progress import RunProgress

# Transforms that give the same result each time.
_READING = ("LoadAnnotations", "LoadInstances")
FIXED = ("ReadImage", *_READING, "Resize", "FixShapeResize", "FilterAnnotations")
THREADS = 8

MEMORY_SHARE = 0.5  # a cache may take this much of the free memory
_EMPTY = object()


class CacheError(ValueError):
    """A cache that does not fit in memory, or that this config cannot have."""


class _Bits(NamedTuple):
    """Masks with 8 pixels per byte."""

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
        dataset: an `ImageDataset` whose annotations are read.

    Raises:
        CacheError: the pipeline does not begin with ReadImage, or too little memory is free.
    """

    def __init__(self, dataset: Any) -> None:
        transforms = dataset.pipeline.transforms
        names = [type(one).__name__ for one in transforms]
        count = next((i for i, name in enumerate(names) if name not in FIXED), len(names))
        if names[:1] != ["ReadImage"]:
            raise CacheError(
                f"cache='ram': expected a pipeline that begins with ReadImage, got {', '.join(names)}"
            )
        self._fixed, self.rest = Compose(transforms[:count]), Compose(transforms[count:])
        self._annotations_read = not {*_READING} & {*names[count:]}
        self._load = dataset.get_data_info
        self._kept: list[Any] = [_EMPTY] * len(dataset)
        if is_main_process():
            seeds, need = getattr(dataset, "seeds", None), 0
            for i in range(len(dataset)):
                info = dataset.info_without_seeds(i)
                height, width = _resized(transforms[:count], info["height"], info["width"])
                mask = -(-height * width // 8) + (4 * seeds.channels if seeds else 0)
                # A kilobyte is more than enough for boxes, labels and the like.
                need += 1024 + 3 * height * width + len(info["instances"]) * mask
            what = f"{len(dataset)} decoded, resized images and their masks"
            check_fits(what, need, torch.device("cpu"), "resize to less, or leave --cache out")

    def fill(self) -> None:
        """Reads all images that are not there yet, with threads."""
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
            loaded = self._load(index)
            path = loaded["img_path"]
            with narrow_is_broken(lambda: path):
                results = self._fixed(loaded)
        except BrokenImageError as error:
            self._kept[index] = error
            return
        if results is not None:
            if self._annotations_read:
                results.pop("instances", None)
            for key, value in results.items():
                if isinstance(value, BitmapMasks) and not isinstance(value, RunMasks):
                    results[key] = _Bits.pack(value)
        self._kept[index] = results


@contextmanager
def narrow_is_broken(path: Callable[[], str]) -> Iterator[None]:
    """Turns OpenCV's error for an image too narrow to be resized into a BrokenImageError."""
    try:
        yield
    except cv2.error as error:
        if error.func != "resize":
            raise
        raise BrokenImageError(path(), "too narrow to be resized") from None


def _copied(value: Any) -> Any:
    if isinstance(value, _Bits):
        return value.unpack()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, BaseBoxes):
        return value.clone()
    if isinstance(value, (str, int, float, tuple, RunMasks)):
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


def check_fits(what: str, need: int, device: torch.device, way_out: str) -> None:
    """Prints how much memory a cache will take.

    Raises:
        CacheError: that is more than half of what is free.
    """
    free = free_memory(device)
    where = "memory" if device.type == "cpu" else f"memory of {device}"
    if need > MEMORY_SHARE * free:
        raise CacheError(
            f"--cache: {what} would take {_size(need)}, expected at most half of the {_size(free)} that are "
            f"free in the {where}; {way_out}"
        )
    print(f"{what}: {_size(need)} of the {_size(free)} free in the {where}", flush=True)


def free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
