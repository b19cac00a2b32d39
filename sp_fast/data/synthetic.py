"""A synthetic data set of textured, overlapping objects of many shapes and sizes.

A scene depends only on (seed, split, number), so a set can be reproduced as a whole or in part.
"""

from __future__ import annotations

import colorsys
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from sp_fast.data.coco import save_coco
from sp_fast.data.rle import run_lengths
from sp_fast.files import write_json

Level = Callable[[np.ndarray, np.ndarray], np.ndarray]

SHAPES = ("disc", "box", "triangle", "star", "cross", "ring", "crescent", "blob")
# Each split and its annotation file.
SPLITS = {"unlabelled": "unlabelled.truth.json", "labelled": "labelled.json", "validation": "validation.json"}


@dataclass(frozen=True)
class SetOptions:
    """Options of a synthetic set.

    Attributes:
        size: height and width of the square images in pixels.
        unlabelled, labelled, validation: number of scenes in each split.
        seed: random seed.
    """

    size: int = 128
    unlabelled: int = 600
    labelled: int = 20
    validation: int = 120
    seed: int = 0


@dataclass
class Scene:
    """One image and its objects.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        masks: bool [n, H, W], the visible part of each object; they do not overlap.
        categories: index into SHAPES of each object.
    """

    image: np.ndarray
    masks: np.ndarray
    categories: list[int]


def make_set(
    folder: str | os.PathLike[str],
    options: SetOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write the three splits to `folder`, unless it already holds a set with the same options.

    Images go to `<split>/000000.png` and so on; `labelled.json` and `validation.json` are COCO-format files
    with one category per shape. `unlabelled.truth.json` annotates the unlabelled split, for scoring
    proposals; training never reads it.

    Args:
        folder: output folder, created if needed.
        options: sizes and seed.
        progress: called with (scenes done, total scenes).

    Returns:
        `folder`.
    """
    folder, options = Path(folder), options or SetOptions()
    stamp = folder / "options.json"
    complete = stamp.is_file() and all((folder / name).is_file() for name in SPLITS.values())
    if complete and json.loads(stamp.read_text()) == asdict(options):
        return folder
    stamp.unlink(missing_ok=True)
    total, done = sum(getattr(options, split) for split in SPLITS), 0
    for part, (split, file_name) in enumerate(SPLITS.items()):
        images = folder / split
        images.mkdir(parents=True, exist_ok=True)
        for stale in images.glob("*.png"):
            stale.unlink()
        coco: dict = {"images": [], "annotations": [], "categories": []}
        coco["categories"] = [{"id": k + 1, "name": name} for k, name in enumerate(SHAPES)]
        for number in range(getattr(options, split)):
            scene = make_scene(options.size, (options.seed, part, number))
            name = f"{number:06d}.png"
            Image.fromarray(scene.image).save(images / name, compress_level=1)
            _annotate(coco, scene, name)
            done += 1
            if progress is not None:
                progress(done, total)
        save_coco(coco, folder / file_name)
    # Written last, so that an interrupted set is made again.
    write_json(asdict(options), stamp)
    return folder


def _annotate(coco: dict, scene: Scene, name: str) -> None:
    image_id = len(coco["images"]) + 1
    height, width = scene.image.shape[:2]
    coco["images"].append({"id": image_id, "file_name": name, "height": height, "width": width})
    rles = run_lengths(scene.masks)
    for mask, category, rle in zip(scene.masks, scene.categories, rles, strict=True):
        coco["annotations"].append(
            {
                "id": len(coco["annotations"]) + 1,
                "image_id": image_id,
                "category_id": category + 1,
                "segmentation": rle,
                "bbox": [float(value) for value in coco_mask.toBbox(rle)],
                "area": float(mask.sum()),
                "iscrowd": 0,
            }
        )


def make_scene(size: int, seed: tuple[int, ...]) -> Scene:
    """Draw a textured background and 3 to 7 objects, from back to front. At least half of each stays visible.

    Args:
        size: height and width in pixels.
        seed: random seed.
    """
    rng = np.random.default_rng(seed)
    image, ground = _background(size, rng)
    masks: list[np.ndarray] = []
    areas: list[int] = []
    categories: list[int] = []
    wanted = int(rng.integers(3, 8))
    # An object that would hide another, or hardly be visible, is drawn again elsewhere.
    for _ in range(4 * wanted):
        if len(masks) == wanted:
            break
        category = int(rng.integers(len(SHAPES)))
        radius = size * float(np.exp(rng.uniform(np.log(0.1), np.log(0.27))))
        centre = rng.uniform(0.3 * radius, size - 0.3 * radius, 2)
        window, u, v = _local_coordinates(size, centre, radius, rng)
        level = _shape(SHAPES[category], rng)
        distance = level(u, v) * radius
        mask: np.ndarray = np.zeros((size, size), bool)
        mask[window] = distance < 0
        area = int(mask.sum())
        left = [int((other & ~mask).sum()) for other in masks]
        hidden = any(now < 0.5 * full for now, full in zip(left, areas, strict=True))
        if area < 0.004 * size * size or hidden:
            continue
        colour = _colour(rng, unlike=ground)
        paint = _texture(u, v, colour, rng) * _light(u, v)[..., None]
        shadow = np.clip(0.5 - level(u - 0.12, v - 0.12) * radius / (0.25 * radius), 0, 1) * 0.35
        alpha = np.clip(0.5 - distance, 0, 1)[..., None]
        shaded = image[window] * (1 - shadow[..., None])
        image[window] = shaded + alpha * (paint - shaded)
        masks = [other & ~mask for other in masks] + [mask]
        areas.append(area)
        categories.append(category)
    image += rng.normal(0, 0.012, image.shape)
    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return Scene(pixels, np.stack(masks), categories)


def _local_coordinates(
    size: int, centre: np.ndarray, radius: float, rng: np.random.Generator
) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """The window around the object, and its pixels in the rotated and stretched frame of the object."""
    low = np.clip(np.floor(centre - 2.2 * radius), 0, size).astype(int)
    high = np.clip(np.ceil(centre + 2.2 * radius), 0, size).astype(int)
    window = slice(low[1], high[1]), slice(low[0], high[0])
    y, x = np.mgrid[window].astype(np.float32)
    x, y = (x + 0.5 - centre[0]) / radius, (y + 0.5 - centre[1]) / radius
    turn, stretch = rng.uniform(0, 2 * np.pi), float(np.exp(rng.uniform(-0.35, 0.35)))
    u = (np.cos(turn) * x + np.sin(turn) * y) * stretch
    v = (-np.sin(turn) * x + np.cos(turn) * y) / stretch
    return window, u, v


def _shape(name: str, rng: np.random.Generator) -> Level:
    """A function of (u, v), negative inside, that approximates the distance to the outline."""
    if name == "disc":
        return lambda u, v: np.hypot(u, v) - 1
    if name == "box":
        power = rng.uniform(5, 12)
        return lambda u, v: 0.85 * ((np.abs(u) ** power + np.abs(v) ** power) ** (1 / power)) - 0.8
    if name == "triangle":
        return lambda u, v: np.maximum(np.maximum(0.87 * u + 0.5 * v, -0.87 * u + 0.5 * v), -v) - 0.55
    if name == "star":
        points, inner = int(rng.integers(5, 8)), rng.uniform(0.48, 0.66)
        return _star(points, float(inner))
    if name == "cross":
        arm = rng.uniform(0.25, 0.4)
        return lambda u, v: np.minimum(
            np.maximum(np.abs(u) - 1, np.abs(v) - arm), np.maximum(np.abs(v) - 1, np.abs(u) - arm)
        )
    if name == "ring":
        hole = rng.uniform(0.3, 0.5)
        return lambda u, v: np.abs(np.hypot(u, v) - (1 + hole) / 2) - (1 - hole) / 2
    if name == "crescent":
        shift = rng.uniform(0.65, 0.85)
        return lambda u, v: np.maximum(np.hypot(u, v) - 1, 0.85 - np.hypot(u - shift, v))
    waves = [(k, rng.uniform(0.03, 0.5 / k), rng.uniform(0, 2 * np.pi)) for k in range(2, 6)]
    return lambda u, v: (
        np.hypot(u, v) - 0.85 * (1 + sum(a * np.cos(k * np.arctan2(v, u) + phase) for k, a, phase in waves))
    )


def _star(points: int, inner: float) -> Level:
    half = np.pi / points
    end = inner * np.cos(half), inner * np.sin(half)

    def level(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        angle = np.abs((np.arctan2(v, u) % (2 * half)) - half)
        # Radius in this direction of the edge from the tip (1, 0) to the notch `end`.
        edge = end[1] / (np.cos(half - angle) * end[1] - np.sin(half - angle) * (end[0] - 1))
        return 0.7 * (np.hypot(u, v) - edge)

    return level


def _noise(size: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise in about -1..1: three octaves, the coarsest with `cells` cells per side."""
    total: np.ndarray = np.zeros((size, size), np.float32)
    for octave in range(3):
        side = min(cells * 2**octave, size)
        grid = rng.uniform(-1, 1, (side, side)).astype(np.float32)
        total += np.asarray(Image.fromarray(grid).resize((size, size), Image.Resampling.BICUBIC)) / 2**octave
    return total / 1.5


def _background(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A muted, textured background, float [size, size, 3] in 0..1, and its mean colour."""
    colour = np.array(colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.05, 0.3), rng.uniform(0.3, 0.8)))
    other = colour * rng.uniform(0.75, 0.95) + rng.uniform(-0.06, 0.06, 3)
    kind = rng.integers(3)
    if kind == 0:  # earth
        mix = 0.5 + 0.5 * _noise(size, int(rng.integers(4, 12)), rng)
    elif kind == 1:  # slightly bent planks
        y, x = np.mgrid[0:size, 0:size] / size
        turn, count = rng.uniform(0, np.pi), rng.uniform(4, 12)
        along = np.cos(turn) * x + np.sin(turn) * y + 0.03 * _noise(size, 3, rng)
        mix = 0.5 + 0.5 * np.sin(2 * np.pi * count * along) + 0.25 * _noise(size, 12, rng)
    else:  # gravel
        mix = 0.5 + 0.8 * _noise(size, size // 6, rng)
    ramp = np.linspace(-0.08, 0.08, size)[:, None, None] * rng.uniform(-1, 1)
    image = colour + np.clip(mix, 0, 1)[..., None] * (other - colour) + ramp
    return np.clip(image, 0, 1), image.mean((0, 1))


def _colour(rng: np.random.Generator, unlike: np.ndarray) -> np.ndarray:
    """A colour, RGB in 0..1, that stands out from `unlike`."""
    while True:
        colour = np.array(colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0.45, 1.0), rng.uniform(0.4, 1.0)))
        if np.abs(colour - unlike).sum() > 0.7:
            return colour


def _texture(u: np.ndarray, v: np.ndarray, colour: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The object's surface, float [H, W, 3]: a pattern of two shades in the object's frame."""
    other = np.clip(colour * rng.uniform(0.6, 0.88) + rng.uniform(-0.06, 0.06, 3), 0, 1)
    rate = rng.uniform(1.0, 2.6)
    kind = rng.integers(6)
    if kind == 0:
        mix = np.zeros_like(u)
    elif kind == 1:  # stripes
        mix = np.clip(0.5 + 3 * np.sin(2 * np.pi * rate * u), 0, 1)
    elif kind == 2:  # checks
        mix = np.clip(0.5 + 4 * np.sin(np.pi * rate * 1.5 * u) * np.sin(np.pi * rate * 1.5 * v), 0, 1)
    elif kind == 3:  # dots
        mix = np.clip(3 * (np.cos(2 * np.pi * rate * u) + np.cos(2 * np.pi * rate * v) - 0.8), 0, 1)
    elif kind == 4:  # marble
        noise = _noise(max(u.shape), 5, rng)[: u.shape[0], : u.shape[1]]
        mix = 0.5 + 0.5 * np.sin(2 * np.pi * (rate * u + 0.8 * noise))
    else:  # tree rings
        mix = 0.5 + 0.5 * np.sin(2 * np.pi * 2 * rate * np.hypot(u, v))
    return colour + mix[..., None] * (other - colour)


def _light(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Shading of a slightly raised surface."""
    return np.clip(1.02 - 0.16 * np.hypot(u + 0.3, v + 0.3) ** 1.5, 0.6, 1.1)
