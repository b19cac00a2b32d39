"""Shows where the kernels of a model look: averages their masks over images."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sp_fast.data.images import read_image
from sp_fast.files import replacing
from sp_fast.plots import WIDTH, shortened

SIDE = 200  # side of the maps in pixels, as in the paper's Figure 6
SAVE_SECONDS = 60.0
LONGEST = 52  # characters of a title that fit above the maps of a model


def mean_kernel_maps(
    model: Any,
    images: Sequence[str | os.PathLike[str]],
    *,
    partial: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """Averages each kernel's mask after the last stage, sigmoid(logits), over images.

    Masks are cropped to their image, without padding, and resized to 200 x 200 (bilinear).

    Args:
        model: K-Net or Mask2Former from `sp_fast.load`.
        images: image files; their EXIF orientation is applied.
        partial: file for the running sum, written once a minute; a call with the same file, model and images
            continues from it.
        progress: called with (images done, all images), at the start and after each image.

    Returns:
        Mean probabilities, float32 [N, 200, 200], in the order of the kernels.

    Raises:
        ValueError: no images, a model of another family or an exported model.
        OSError, BrokenImageError: an image that cannot be read.
    """
    if not hasattr(model, "kernel_masks"):
        raise ValueError(
            f"model: expected a checkpoint, got an exported model ({type(model).__name__}), which does not "
            "give the kernels' masks"
        )
    if not images:
        raise ValueError("images: expected at least one, got none")
    sums, done = _restored(partial)
    saved = time.monotonic()
    for number in range(done, len(images)):
        if progress is not None:
            progress(number, len(images))
        masks = model.kernel_masks(read_image(images[number]), (SIDE, SIDE)).cpu().numpy()
        sums = masks.astype(np.float64) if sums is None else sums + masks
        if partial is not None and time.monotonic() - saved > SAVE_SECONDS:
            with replacing(partial) as file:
                np.savez(file, sums=sums, done=number + 1)
            saved = time.monotonic()
    if progress is not None:
        progress(len(images), len(images))
    assert sums is not None
    return (sums / len(images)).astype(np.float32)


def _restored(partial: Path | None) -> tuple[np.ndarray | None, int]:
    if partial is None or not partial.is_file():
        return None, 0
    with np.load(partial) as kept:
        return kept["sums"], int(kept["done"])


def kernel_figure(maps: Mapping[str, np.ndarray]) -> Figure:
    """Draws each model's maps under its label, in a square of small maps; all share one colour scale from 0.

    Kernels run from left to right, then down.
    """
    pictures = {label: _mosaic(one) for label, one in maps.items()}
    ratio = max(one.shape[0] / one.shape[1] for one in pictures.values())
    lines = math.ceil(len(maps) / 2)
    figure = Figure(figsize=(WIDTH, lines * (ratio * (WIDTH - 0.8) / 2 + 0.3)), layout="constrained")
    axes = figure.subplots(lines, 2, squeeze=False)
    top = max(float(one.max()) for one in maps.values())
    shown: Any = None
    for place in axes.flat:
        place.set_axis_off()
    for place, (label, one) in zip(axes.flat, pictures.items(), strict=False):
        shown = place.imshow(one, cmap="viridis", vmin=0, vmax=top)
        place.set_title(shortened(label, LONGEST))
    bar = figure.colorbar(shown, ax=axes, shrink=0.6, aspect=30, pad=0.01)
    bar.set_label("mean mask activation")
    return figure


def _mosaic(maps: np.ndarray) -> np.ndarray:
    """The maps [N, H, W] side by side in a square; NaN, which is not drawn, between them."""
    across = math.ceil(math.sqrt(len(maps)))
    gap = max(maps.shape[1] // 20, 1)
    framed = np.pad(maps, ((0, -len(maps) % across), (0, gap), (0, gap)), constant_values=np.nan)
    framed[len(maps) :] = np.nan
    rows = framed.reshape(-1, across, *framed.shape[1:])
    return np.concatenate([np.concatenate(list(row), axis=1) for row in rows], axis=0)
