"""The tables of `sp-fast score`, for the terminal and the page: lines of texts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from sp_fast.proposals.comparison import FileScores
from sp_fast.proposals.recall import COUNTS
from sp_fast.proposals.scores import SIZES, Coverage

Lines = list[list[str]]
ORDERS = {"by_score": "by score", "perfect": "perfect order", "chance": "chance"}


def overview(files: Sequence[FileScores]) -> Lines:
    """What each file holds, and its average recall; a column per file."""
    columns = [dict(_overview(one)) for one in files]
    return [[name, *(column[name] for column in columns)] for name in columns[0]]


def coverage(files: Sequence[FileScores]) -> Lines:
    """Number of masks, file, and coverage of objects of each size as "mean best IoU, share above 0.5"."""
    by_file = [(one.label, one.recall.coverage) for one in files if one.recall is not None]
    keys = max((list(found) for _, found in by_file), key=len, default=[])
    return [
        [key, label, *(_coverage(found[key][size]) for size in SIZES)]
        for key in keys
        for label, found in by_file
        if key in found
    ]


def lines_left_out(files: Sequence[FileScores]) -> str:
    """Why some files have fewer lines in `coverage` than others, if any have."""
    if len({len(one.recall.coverage) for one in files if one.recall is not None}) < 2:
        return ""
    return 'A file has no line "first 20" if none of its images has more than 20 masks, and so on.'


def orders(files: Sequence[FileScores]) -> Lines:
    """Order of the masks, file, and the share of objects with IoU above 0.5 for each number of masks."""
    return [
        [order, one.label, *(percent(getattr(one.recall.above_half, name)[count - 1]) for count in COUNTS)]
        for name, order in ORDERS.items()
        for one in files
        if one.recall is not None
    ]


def percent(value: float) -> str:
    """A value of 0 to 1 in percent; a dash for NaN."""
    return "-" if math.isnan(value) else f"{value:.1%}"


def _overview(one: FileScores) -> Iterator[tuple[str, str]]:
    found = one.summary
    low, middle, high = map(percent, found.area_quartiles)
    yield "masks per image", f"{found.masks_per_image:.1f}"
    yield "  fewest, most", f"{found.fewest}, {found.most}"
    yield "  images without any", str(found.images_without)
    yield "area of a mask, of its image: median", middle
    yield "  quartiles", f"{low}, {high}"
    yield "covered by the masks of an image", percent(found.covered)
    yield "highest IoU with another mask", _number(found.overlap)
    yield "strips along the border", percent(found.strips.masks_share)
    yield "  best mask of each image", percent(found.strips.best_share)
    if one.recall is not None:
        for count, value in one.recall.average_recall.items():
            yield f"AR{count}", percent(value)


def _coverage(one: Coverage) -> str:
    return f"{one.mean_best_iou:.3f} {one.above_half:5.1%}" if one.objects else "-"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
