"""Images and masks in memory: read, resized and packed once, so that a step costs no reading."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision.transforms.v2 import functional as vision

from sp_fast.data.images import read_image
from sp_fast.data.rle import to_rle
from sp_fast.knet.targets import TARGET_STRIDE

Progress = Callable[[int, int], None]


def canvas_size(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width of an image whose longer side becomes `size`, both multiples of 4.

    So that a mask at a quarter of the size can be flipped exactly.
    """
    scale = size / max(height, width)

    def side(pixels: int) -> int:
        return max(TARGET_STRIDE, round(pixels * scale / TARGET_STRIDE) * TARGET_STRIDE)

    return side(height), side(width)


@dataclass(frozen=True)
class Images:
    """Images in the corners of square canvases.

    Attributes:
        pixels: uint8 `[n, 3, size, size]`, RGB; 0 beside the image.
        sizes: int64 array `[n, 2]`, height and width of each.
    """

    pixels: Tensor
    sizes: np.ndarray

    def to(self, device: torch.device) -> Images:
        """The same with the pixels on `device`."""
        return Images(self.pixels.to(device), self.sizes)


@dataclass(frozen=True)
class Masks:
    """The masks of all images, one after the other.

    Attributes:
        cells: uint8 `[m, size / 4, size / 4]`, the covered share of each cell times 255.
        boxes: fp32 `[m, 4]`, tight x0 y0 x1 y1 in pixels of the canvas.
        labels: int64 `[m]`.
        seeds: `[m, D]`, or None.
        starts: int64 array `[n + 1]`; image i has the masks from starts[i] to starts[i + 1].
    """

    cells: Tensor
    boxes: Tensor
    labels: Tensor
    seeds: Tensor | None
    starts: np.ndarray

    def to(self, device: torch.device) -> Masks:
        """The same on `device`."""
        seeds = None if self.seeds is None else self.seeds.to(device)
        cells, boxes, labels = (part.to(device) for part in (self.cells, self.boxes, self.labels))
        return Masks(cells, boxes, labels, seeds, self.starts)


def load_images(
    paths: Sequence[Path],
    size: int,
    shapes: Sequence[tuple[int, int] | None] | None = None,
    workers: int = 4,
    progress: Progress | None = None,
) -> Images:
    """Reads and resizes images.

    Args:
        paths: of the images.
        size: longer side of the canvas, a multiple of 32.
        shapes: height and width of the original of each image, where its file may be a resized copy.
        workers: threads.
        progress: called with (images done, images in all).
    """
    pixels = torch.zeros(len(paths), 3, size, size, dtype=torch.uint8)
    sizes: np.ndarray = np.zeros((len(paths), 2), np.int64)

    def load(i: int) -> None:
        image = torch.from_numpy(read_image(paths[i])).permute(2, 0, 1)
        shape = None if shapes is None else shapes[i]
        height, width = shape or (image.shape[1], image.shape[2])
        height, width = canvas_size(height, width, size)
        if image.shape[1:] != (height, width):
            image = vision.resize(image, [height, width], antialias=True)
        pixels[i, :, :height, :width] = image
        sizes[i] = height, width

    with ThreadPoolExecutor(workers) as pool:
        for done, _ in enumerate(pool.map(load, range(len(paths))), start=1):
            if progress is not None:
                progress(done, len(paths))
    return Images(pixels, sizes)


def pack_masks(
    images: Images,
    annotations: Sequence[Sequence[dict[str, Any]]],
    shapes: Sequence[tuple[int, int]],
    labels: dict[Any, int],
    seeds: Tensor | None = None,
    workers: int = 4,
) -> Masks:
    """Brings the masks of COCO-format annotations to the images' canvases.

    Crowds and masks without a pixel are left out.

    Args:
        images: n images.
        annotations: of each image; with `seed_row` where there are seeds.
        shapes: height and width that each image's annotations are of.
        labels: label of each category id.
        seeds: `[rows, D]`.
        workers: threads.
    """
    side = images.pixels.shape[-1] // TARGET_STRIDE

    def pack(i: int) -> _Packed:
        return _pack_image(annotations[i], shapes[i], tuple(images.sizes[i].tolist()), side)

    with ThreadPoolExecutor(workers) as pool:
        packed = list(pool.map(pack, range(len(annotations))))
    kept = [one for image in packed for one in image.kept]
    rows = [one["seed_row"] for one in kept] if seeds is not None else []
    return Masks(
        torch.cat([image.cells for image in packed]),
        torch.cat([image.boxes for image in packed]),
        torch.tensor([labels[one["category_id"]] for one in kept], dtype=torch.int64),
        None if seeds is None else seeds[rows].float(),
        np.cumsum([0, *(len(image.kept) for image in packed)]),
    )


@dataclass(frozen=True)
class _Packed:
    kept: list[dict[str, Any]]
    cells: Tensor
    boxes: Tensor


def _pack_image(
    annotations: Sequence[dict[str, Any]], shape: tuple[int, int], size: tuple[int, int], side: int
) -> _Packed:
    own = [(one, to_rle(one["segmentation"], *shape)) for one in annotations if not one.get("iscrowd", 0)]
    own = [(one, rle) for one, rle in own if coco_mask.area(rle) > 0]
    cells = torch.zeros(len(own), side, side, dtype=torch.uint8)
    if not own:
        return _Packed([], cells, torch.zeros(0, 4))
    rles = [rle for _, rle in own]
    full = torch.from_numpy(coco_mask.decode(rles)).permute(2, 0, 1)
    inner = (size[0] // TARGET_STRIDE, size[1] // TARGET_STRIDE)
    small = F.interpolate(full[None].float(), size=inner, mode="area")[0]
    cells[:, : inner[0], : inner[1]] = (small * 255).round().to(torch.uint8)
    boxes = torch.from_numpy(np.asarray(coco_mask.toBbox(rles), np.float32))
    boxes[:, 2:] += boxes[:, :2]
    scale = torch.tensor([size[1] / shape[1], size[0] / shape[0]]).repeat(2)
    return _Packed([one for one, _ in own], cells, boxes * scale)
