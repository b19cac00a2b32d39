"""Images with masks and seeds, as `sp-fast propose` leaves them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from benchmarks.store import MASKS, entries_of, masks_of
from sp_fast.data.coco import write_masks
from sp_fast.data.images import list_images
from sp_fast.proposals.store import seeds_path


def write_set(
    folder: Path,
    images: int,
    *,
    photographs: Path | None,
    channels: int,
    masks: int,
    size: tuple[int, int] = (480, 640),
) -> Path:
    """Write JPEG images, masks.json and seeds; returns the annotation file.

    Args:
        folder: a folder, made if need be.
        images: number of images.
        photographs: folder of images to resize and take; None: noise at several scales.
        channels: channels of the seeds.
        masks: masks of each image, at most 20.
        size: height and width of the images in pixels.
    """
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    entries = entries_of(images, *size)
    paths = list_images(photographs)[:images] if photographs else []
    for k, entry in enumerate(entries):
        if paths:
            picture = Image.open(paths[k % len(paths)]).convert("RGB").resize(size[::-1])
        else:
            picture = _made_up(rng, size)
        picture.save(folder / "images" / entry["file_name"], quality=90)
    annotations = folder / "masks.json"
    chosen = [mask for k, mask in enumerate(masks_of(images, *size)) if k % MASKS < masks]
    for row, mask in enumerate(chosen):
        mask["seed_row"] = row
    with annotations.open("wb") as file:
        write_masks(file, {}, entries, iter(chosen))
    seeds = rng.standard_normal((len(chosen), channels)).astype(np.float16)
    save_file({"seeds": seeds}, seeds_path(annotations))
    return annotations


def _made_up(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Noise at several scales: as costly to decode as a photograph."""
    total = np.zeros((*size, 3), np.float32)
    for cells in (4, 16, 64, 256):
        grid = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        total += np.asarray(Image.fromarray(grid).resize(size[::-1], Image.Resampling.BICUBIC)) / 4
    return Image.fromarray(total.astype(np.uint8))
