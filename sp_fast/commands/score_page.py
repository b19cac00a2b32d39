"""The page of `sp-fast score`: tables, curves by rank, and pictures with masks in their order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from pycocotools import mask as coco_mask

from sp_fast.commands import score_tables as tables
from sp_fast.data.faults import counted
from sp_fast.data.images import spread
from sp_fast.drawing import PALETTE, data_uri, number, overlay, resized
from sp_fast.evaluation.sources import annotated_image
from sp_fast.pages import render
from sp_fast.plots import COLOURS, INK, inline_svg
from sp_fast.proposals.comparison import Comparison, FileScores
from sp_fast.proposals.ranked import RankedMasks
from sp_fast.proposals.recall import RANKS

SHOWN = 10  # masks on a picture, the count by which images are ranked
DASHES = {"by_score": "solid", "perfect": "dashed", "chance": "dotted"}
CURVES = {
    "above_half": "Share of objects with IoU above 0.5",
    "mean_best_iou": "Mean best IoU of the objects",
}


class Strip(NamedTuple):
    """The pictures of an image with a caption each, and what is said of the image."""

    name: str
    about: str
    pictures: list[tuple[str, str]]


def html(found: Comparison, images: Path | None, samples: int, command: str) -> str:
    """The scores as one HTML page; with `images`, their folder, also pictures of `samples` images.

    Raises:
        OSError, ValueError: see `annotated_image`.
    """
    colours = [COLOURS[1 + k % (len(COLOURS) - 1)] for k in range(len(found.files))]
    chosen = _chosen(found, samples) if images is not None else {}
    return render(
        "score.html",
        {},
        title=f"Masks of {', '.join(one.label for one in found.files)}",
        found=found,
        objects=None
        if found.objects is None
        else sum(len(found.objects.masks[name]) for name in found.names),
        overview=tables.overview(found.files),
        coverage=tables.coverage(found.files),
        lines_left_out=tables.lines_left_out(found.files),
        orders=tables.orders(found.files),
        counts=tables.COUNTS,
        dashes={tables.ORDERS[name]: dashes for name, dashes in DASHES.items()},
        colours=colours,
        curves=[Markup(_curves(found.files, value, colours)) for value in CURVES] if found.objects else [],
        shown=SHOWN,
        strips={heading: [_strip(found, name, images) for name in names] for heading, names in chosen.items()}
        if images is not None
        else {},
        command=command,
    )


def _chosen(found: Comparison, count: int) -> dict[str, list[str]]:
    """Images by heading: best, typical and worst by the best IoU of objects with the first masks."""
    by_image = [one.recall.by_image for one in found.files if one.recall is not None]
    if not by_image or not by_image[0]:
        return {"Sample images": spread(found.names, count)}
    scores = {name: mean(one[name].first for one in by_image) for name in by_image[0]}
    ranked = sorted(scores, key=lambda name: (-scores[name], name))
    if len(ranked) <= max(count, 3):
        return {"All images, the best first": ranked}
    each = max(count // 3, 1)
    middle = (len(ranked) - each) // 2
    return {
        "Best images": ranked[:each],
        "Typical images": ranked[middle : middle + each],
        "Worst images": ranked[-each:],
    }


def _strip(found: Comparison, name: str, folder: Path) -> Strip:
    first = found.files[0].masks
    image = annotated_image(first.images[name], folder, first.exif)
    about = ""
    if found.objects is None:
        pictures = [(data_uri(resized(image)), "image")]
    else:
        wanted = found.objects.masks[name]
        about = counted(len(wanted), "object")
        pictures = [(data_uri(_drawn(image, found.objects, name, len(wanted))[0]), "annotated objects")]
    for one in found.files:
        picture, masks = _drawn(image, one.masks, name, SHOWN)
        pictures.append((data_uri(number(picture, masks)), _caption(one, name)))
    return Strip(name, about, pictures)


def _drawn(
    image: np.ndarray, masks: RankedMasks, name: str, count: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    pixels = [coco_mask.decode(rle).astype(bool) for rle in masks.masks[name][:count]]
    return overlay(image, pixels, [PALETTE[k % len(PALETTE)] for k in range(len(pixels))]), pixels


def _caption(one: FileScores, name: str) -> str:
    masks = f"{one.label}: {counted(len(one.masks.masks[name]), 'mask')}"
    if one.recall is None or name not in one.recall.by_image:
        return masks
    recall = one.recall.by_image[name]
    return f"{masks}; mean best IoU {recall.first:.2f} with the first {SHOWN}, {recall.all:.2f} with all"


def _curves(files: Sequence[FileScores], value: str, colours: Sequence[str]) -> str:
    def draw(axes: Any) -> None:
        for one, colour in zip(files, colours, strict=True):
            for order, values in getattr(one.recall, value)._asdict().items():
                axes.plot(RANKS, values, color=colour, linestyle=DASHES[order])
        axes.set(title=CURVES[value], xlabel="masks per image", xscale="log", xlim=(1, RANKS[-1]))
        axes.set_xticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.grid(axis="y", color=INK, alpha=0.12)

    return inline_svg(draw, value)
