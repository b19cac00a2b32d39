"""The page of `sp-fast check`: counts, faults, and pictures with masks drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from sp_fast.data.check import CheckedFile, Findings
from sp_fast.data.faults import KINDS, NOTE, counted
from sp_fast.data.images import BrokenImageError, read_labelled
from sp_fast.data.rle import to_rle
from sp_fast.drawing import PALETTE, data_uri, overlay
from sp_fast.files import write_text
from sp_fast.pages import render

SAMPLES = 12  # pictures spread over the set, and as many of images with faults
BINS = 24


class Histogram(NamedTuple):
    """Heights of the bars in percent of the highest, and what is written below them."""

    title: str
    bars: list[float]
    ticks: list[str]


def write_page(found: Findings, out: Path) -> None:
    """Writes the page of what `check_coco` found as one HTML file (atomic write)."""
    files = [
        {
            "file": file,
            "histograms": _histograms(file),
            "classes": sorted(file.counts.classes.items(), key=lambda pair: -pair[1])[:30],
            "faulty": _faulty(file),
            "samples": [_picture(file, image, "") for image in _spread(file.images)],
        }
        for file in found.files
    ]
    write_text(render("check.html", {}, files=files, kinds=KINDS), out)


def _histograms(file: CheckedFile) -> list[Histogram]:
    counts, histograms = file.counts, []
    if counts.objects_per_image:
        top = max(counts.objects_per_image)
        bars, edges = np.histogram(counts.objects_per_image, min(BINS, top + 1), (-0.5, top + 0.5))
        histograms.append(Histogram("Objects per image", _percent(bars), ["0", str(top)] if top else ["0"]))
    if counts.areas:
        sides = np.sqrt(counts.areas)
        edges = np.geomspace(1, max(sides.max(), 2) * 1.001, BINS + 1)
        bars, _ = np.histogram(sides, edges)
        middle = [f"{edges[k]:.0f}" for k in (0, BINS // 4, BINS // 2, 3 * BINS // 4, BINS)]
        histograms.append(
            Histogram("Size of objects: square root of the area, in pixels", _percent(bars), middle)
        )
    return histograms


def _percent(bars: np.ndarray) -> list[float]:
    return [round(100 * float(bar) / max(int(bars.max()), 1), 1) for bar in bars]


def _spread(images: Sequence[dict]) -> list[dict]:
    """Evenly spread images."""
    places = np.unique(np.linspace(0, len(images) - 1, min(SAMPLES, len(images))).round().astype(int))
    return [images[k] for k in places]


def _faulty(file: CheckedFile) -> list[dict[str, str]]:
    """Pictures of images with faults, as different as possible: one of each kind first."""
    known = {image["id"]: image for image in file.images}
    queues = [
        [fault for fault in those if fault.image in known]
        for kind, those in file.by_kind().items()
        if KINDS[kind].severity != NOTE
    ]
    chosen: dict[Any, str] = {}
    for round_ in range(SAMPLES):
        for queue in queues:
            if round_ < len(queue) and len(chosen) < SAMPLES:
                chosen.setdefault(queue[round_].image, str(queue[round_]))
    return [_picture(file, known[image], why) for image, why in chosen.items()]


def _picture(file: CheckedFile, image: dict, why: str) -> dict[str, str]:
    """Data URI (empty if the image cannot be read), name, number of objects and fault of an image."""
    annotations = file.annotations.get(image["id"], [])
    about = {"picture": "", "name": image["file_name"], "fault": why}
    about["objects"] = counted(len(annotations), "object")
    try:
        pixels = read_labelled(file.folder / image["file_name"], (image["height"], image["width"]))[0]
    except (BrokenImageError, OSError, ValueError):
        return about
    labels = {name: k for k, name in enumerate(sorted({one["category_id"] for one in annotations}, key=str))}
    masks = [
        coco_mask.decode(to_rle(one["segmentation"], image["height"], image["width"])).astype(bool)
        for one in annotations
    ]
    colours = [PALETTE[labels[one["category_id"]] % len(PALETTE)] for one in annotations]
    return about | {"picture": data_uri(overlay(pixels, masks, colours))}
