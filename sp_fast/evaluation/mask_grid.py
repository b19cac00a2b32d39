"""Draws the masks of one or several files over their images, in a grid."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from pycocotools import mask as coco_mask

from sp_fast.data.coco import load_coco
from sp_fast.data.images import spread
from sp_fast.data.rle import to_rle
from sp_fast.data.structure import is_number
from sp_fast.drawing import PALETTE, overlay
from sp_fast.evaluation.sources import annotated_image, read_detections
from sp_fast.plots import WIDTH, shortened
from sp_fast.proposals.store import SEEDS_HASH

LINE = 5.0  # least width of a row of images, in multiples of its height
HEIGHT, GAP = 300, 8  # pixels: height of a row, and space between its images
LONGEST = 30  # characters of a name
MIN_SCORE = 0.3


@dataclass(frozen=True)
class ImageMasks:
    """The masks of a file.

    Attributes:
        label: what the masks are, as written in the figure.
        images: file name of each image -> its entry in a COCO-format file.
        masks: file name of each image -> its masks, in COCO format.
        left_out: number of masks left out for their low scores.
        exif: whether the masks fit images with their EXIF orientation applied; see `read_labelled`.
    """

    label: str
    images: dict[str, dict[str, Any]]
    masks: dict[str, list[dict[str, Any]]]
    left_out: int
    exif: str


def read_masks(
    path: Path, annotations: Path | None = None, *, label: str | None = None, min_score: float | None = 0.0
) -> ImageMasks:
    """Reads masks in COCO format, such as proposals, annotations or predictions, or in COCO's results format.

    Args:
        path: JSON file.
        annotations: COCO-format file of the images; needed for results, which have image ids only.
        label: see `ImageMasks`; the file's name by default.
        min_score: lowest score of a mask to keep; None: MIN_SCORE, and no limit for a file made by
            `sp-fast propose`, whose scores are no probabilities. Crowds are left out.

    Raises:
        OSError, ValueError: see `load_coco` and `read_detections`; or results without `annotations` or masks.
    """
    label = label or path.name
    if _is_list(path):
        if annotations is None:
            raise ValueError(f"--annotations: expected the COCO-format file of the images of {path}, a list")
        coco = load_coco(annotations)
        found = read_detections(path, coco, ignore_classes=True)
        if not found.has_masks:
            raise ValueError(f"{path}: expected results with masks ('segmentation'), got boxes only")
        limit = MIN_SCORE if min_score is None else min_score
        return masks_of({**coco, "annotations": found.entries}, label, limit)
    coco = load_coco(path)
    for one in coco["annotations"]:
        if not is_number(one.get("score", 1.0)):
            raise ValueError(
                f"{path}: annotation {one['id']} has the score {one['score']!r}: expected a number"
            )
    if min_score is None:
        min_score = 0.0 if _is_proposed(coco) else MIN_SCORE
    return masks_of(coco, label, min_score)


def masks_of(coco: dict[str, Any], label: str, min_score: float = 0.0) -> ImageMasks:
    """Like `read_masks`, for a COCO-format dict, whose annotations may also be results."""
    names = {info["id"]: info["file_name"] for info in coco["images"]}
    masks = defaultdict(list)
    left_out = 0
    for one in coco["annotations"]:
        if one.get("score", 1.0) < min_score:
            left_out += 1
        elif not one.get("iscrowd"):
            masks[names[one["image_id"]]].append(one)
    images = {info["file_name"]: info for info in coco["images"]}
    info = coco.get("info")
    exif = info.get("exif", "auto") if isinstance(info, dict) else "auto"
    return ImageMasks(label, images, dict(masks), left_out, exif)


def _is_proposed(coco: dict[str, Any]) -> bool:
    info = coco.get("info")
    return isinstance(info, dict) and SEEDS_HASH in info


def _is_list(path: Path) -> bool:
    if not path.is_file():
        return False  # load_coco says what is wrong
    with path.open("rb") as file:
        return file.read(64).lstrip()[:1] == b"["


def choose_images(files: Sequence[ImageMasks], count: int, names: Sequence[str] | None = None) -> list[str]:
    """Chooses the images to draw: `names`, or at most `count` that all files have, evenly spread.

    Raises:
        ValueError: no image is in all files, or one of `names` is not.
    """
    shared = [name for name in files[0].images if all(name in one.images for one in files)]
    if not shared:
        given = ", ".join(f"{next(iter(one.images), 'no image')} in {one.label}" for one in files)
        raise ValueError(f"MASKS: expected files with images in common, by file_name, got {given}")
    unknown = [name for name in names or () if name not in shared]
    if unknown:
        raise ValueError(
            f"--names: expected images that all files have, such as {shared[0]}, got {unknown[0]}"
        )
    return spread(shared, count) if names is None else list(names)


def mask_grid(files: Sequence[ImageMasks], folder: Path, names: Sequence[str]) -> Figure:
    """Draws masks over images in rows of equal height; with several files, a row is repeated for each file.

    Args:
        files: the masks.
        folder: folder of the images.
        names: file names of the images to draw.

    Raises:
        OSError, ValueError: an image that cannot be read, or whose size is not that of its masks.
    """
    parts = _parts(names, files[0].images)
    lines = [(one, [_picture(one, folder, name) for name in part], part) for part in parts for one in files]
    joined = [_joined(pictures) for _, pictures, _ in lines]
    ratios = [picture.shape[0] / picture.shape[1] for picture, _ in joined]
    layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0)
    figure = Figure(figsize=(WIDTH, WIDTH * sum(ratios) + 0.2 * len(parts)), layout=layout)
    axes = figure.subplots(len(lines), squeeze=False, gridspec_kw={"height_ratios": ratios})[:, 0]
    for number, (place, (one, _, part), (picture, lefts)) in enumerate(zip(axes, lines, joined, strict=True)):
        place.imshow(picture)
        place.set(xticks=[], yticks=[])
        place.spines[:].set_visible(False)
        if number % len(files) == 0:
            for left, name in zip(lefts, part, strict=True):
                place.text(left, -4, shortened(name, LONGEST), fontsize=6.5, va="bottom")
        if len(files) > 1:
            place.set_ylabel(shortened(one.label, LONGEST), fontsize=8)
    return figure


def _parts(names: Sequence[str], images: dict[str, dict[str, Any]]) -> list[list[str]]:
    """Splits the images into rows, each with as many as fill it."""
    parts: list[list[str]] = [[]]
    filled = 0.0
    for name in names:
        if filled >= LINE:
            parts.append([])
            filled = 0.0
        parts[-1].append(name)
        filled += images[name]["width"] / images[name]["height"]
    return parts


def _picture(one: ImageMasks, folder: Path, name: str) -> np.ndarray:
    """The image with its masks, HEIGHT pixels high."""
    image = annotated_image(one.images[name], folder, one.exif)
    rles = [to_rle(mask["segmentation"], *image.shape[:2]) for mask in one.masks.get(name, ())]
    masks = [coco_mask.decode(rle).astype(bool) for rle in rles]
    side = round(HEIGHT * max(image.shape[1] / image.shape[0], 1))
    return overlay(image, masks, [PALETTE[k % len(PALETTE)] for k in range(len(masks))], side)


def _joined(pictures: list[np.ndarray]) -> tuple[np.ndarray, list[int]]:
    """The pictures side by side on a white line, and their left edges."""
    white: np.ndarray = np.full((HEIGHT, GAP, 3), 255, np.uint8)
    lefts = [sum(one.shape[1] + GAP for one in pictures[:k]) for k in range(len(pictures))]
    row = np.concatenate([part for one in pictures for part in (one, white)][:-1], axis=1)
    rest = max(round(LINE * HEIGHT) - row.shape[1], 0)
    return np.pad(row, ((0, 0), (0, rest), (0, 0)), constant_values=255), lefts
