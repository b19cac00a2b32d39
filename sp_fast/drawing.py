"""Masks drawn over images."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_erosion, distance_transform_edt

# Okabe and Ito's colours, which differ from each other on any image.
PALETTE = np.array(
    [
        (230, 159, 0),
        (86, 180, 233),
        (0, 158, 115),
        (240, 228, 66),
        (0, 114, 178),
        (213, 94, 0),
        (204, 121, 167),
    ]
)
WHITE = np.array((255, 255, 255))
SIDE = 360  # longer side of a picture on a page, in pixels


def overlay(
    image: np.ndarray, masks: Sequence[np.ndarray], colours: Sequence[np.ndarray], side: int = SIDE
) -> np.ndarray:
    """Tints and outlines masks on the image, scaled to a longer side of `side` pixels; the smallest on top.

    Takes uint8 [H, W, 3], bool [H, W] and RGB of 0 to 255 for each mask; white is hardly tinted, since it
    would hide what is below.
    """
    big: np.ndarray = resized(image, side).astype(np.float32)
    # Paler than the image, whose colours could be mistaken for those of masks.
    grey = big.mean(axis=2, keepdims=True)
    big = grey + 0.3 * (big - grey)
    size = big.shape[1], big.shape[0]
    for k in sorted(range(len(masks)), key=lambda k: -masks[k].sum()):
        soft = Image.fromarray(masks[k].astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
        mask = np.asarray(soft) >= 128
        tint = 0.1 if colours[k] is WHITE else 0.45
        big[mask] = (1 - tint) * big[mask] + tint * colours[k]
        big[mask & ~binary_erosion(mask, iterations=2)] = colours[k]
    return np.rint(big).astype(np.uint8)


def resized(image: np.ndarray, side: int = SIDE) -> np.ndarray:
    """The image, uint8 [H, W, 3], scaled to a longer side of `side` pixels."""
    scale = side / max(image.shape[:2])
    size = max(round(image.shape[1] * scale), 1), max(round(image.shape[0] * scale), 1)
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))


def data_uri(picture: np.ndarray) -> str:
    """A picture, uint8 [H, W, 3], as a WebP data URI for a page."""
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "webp", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def number(picture: np.ndarray, masks: Sequence[np.ndarray]) -> np.ndarray:
    """Writes 1, 2, ... onto the masks that `overlay` drew, each where most of its mask can be seen.

    Takes the picture, uint8 [h, w, 3], and the masks of its image, bool [H, W].
    """
    written = Image.fromarray(picture)
    draw, font = ImageDraw.Draw(written), ImageFont.load_default(14)
    covered = np.zeros(picture.shape[:2], dtype=bool)
    for k in sorted(range(len(masks)), key=lambda k: masks[k].sum()):
        mask = np.asarray(Image.fromarray(masks[k]).resize(written.size, Image.Resampling.NEAREST))
        seen = mask & ~covered if (mask & ~covered).any() else mask
        covered |= mask
        depth = distance_transform_edt(np.pad(seen, 1))
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        draw.text(
            (float(x), float(y)), str(k + 1), "white", font, anchor="mm", stroke_width=2, stroke_fill="black"
        )
    return np.asarray(written)
