"""Options of the saliency proposals, and the two presets."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from sp_fast.ops.checks import check_choice, check_grids, check_int, check_number

SIMILARITIES = ("dot", "cosine")
NMS_KINDS = ("mask", "matrix")
MATRIX_KERNELS = ("gaussian", "linear")


def _scales(scales: Any) -> tuple[float, ...]:
    for scale in scales:
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale <= 1:
            raise ValueError(f"scales: expected factors above 0 and up to 1, got {scales!r}")
    if not scales:
        raise ValueError("scales: expected at least one factor, got none")
    return tuple(float(scale) for scale in scales)


@dataclass(frozen=True)
class ProposalOptions:
    """Options for making proposals from features. Exactly one of `grid` and `scales` is not None.

    Attributes:
        grid: (rows, columns) of the average-pooling grid of seeds, or a sequence of such pairs.
        scales: factors in (0, 1] by which the features are resized to seeds, bilinearly.
        center: subtract the mean feature of each image from its features.
        similarity: similarity of a seed and a cell, "dot" or "cosine".
        threshold: least normalised saliency inside a mask, in [0, 1].
        nms: non-maximum suppression, "mask" (greedy, by IoU) or "matrix" (decayed scores).
        iou_threshold: mask NMS removes a mask whose IoU with a better one is above this.
        matrix_kernel: decay function of matrix NMS, "gaussian" or "linear".
        sigma: sharpness of matrix NMS's Gaussian decay.
        min_area: smallest area of a mask, in cells.
        max_masks: largest number of masks that NMS keeps, K.
        min_center_height: keep masks whose centre is further down than this share of the height; None: all.
        max_box_width: keep masks whose box is narrower than this share of the width; None: all.
        min_score: keep masks with at least this score after NMS; None: all.
    """

    grid: tuple[tuple[int, int], ...] | None = ((10, 10),)
    scales: tuple[float, ...] | None = None
    center: bool = False
    similarity: str = "dot"
    threshold: float = 0.5
    nms: str = "mask"
    iou_threshold: float = 0.5
    matrix_kernel: str = "gaussian"
    sigma: float = 2.0
    min_area: int = 2
    max_masks: int = 20
    min_center_height: float | None = None
    max_box_width: float | None = None
    min_score: float | None = None

    def __post_init__(self) -> None:
        """Check every option.

        Raises:
            TypeError, ValueError: a bad option; the message says what was expected and what was given.
        """
        if (self.grid is None) == (self.scales is None):
            raise ValueError(
                f"grid, scales: expected exactly one of the two, got grid={self.grid}, scales={self.scales}"
            )
        check_choice("similarity", self.similarity, SIMILARITIES)
        check_choice("nms", self.nms, NMS_KINDS)
        check_choice("matrix_kernel", self.matrix_kernel, MATRIX_KERNELS)
        for name in ("threshold", "iou_threshold"):
            check_number(name, getattr(self, name), 0, 1)
        for name in ("min_center_height", "max_box_width", "min_score"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 0, 1)
        check_number("sigma", self.sigma, 0, math.inf)
        for name in ("min_area", "max_masks"):
            check_int(name, getattr(self, name), 1)
        if not isinstance(self.center, bool):
            raise TypeError(f"center: expected True or False, got {self.center!r}")
        if self.grid is not None:
            object.__setattr__(self, "grid", check_grids(self.grid))
        if self.scales is not None:
            object.__setattr__(self, "scales", _scales(self.scales))


# `paper`: Eq. 3-4 of the paper. `official`: what the authors' released code does.
PRESETS = {
    "paper": ProposalOptions(),
    "official": ProposalOptions(
        grid=None,
        scales=(1.0, 0.5, 0.25),
        similarity="cosine",
        nms="matrix",
        min_center_height=0.2,
        max_box_width=0.95,
        min_score=0.7,
    ),
}
OPTION_NAMES = tuple(field.name for field in dataclasses.fields(ProposalOptions))


def resolve_options(preset: str = "paper", **options: Any) -> ProposalOptions:
    """Return a preset with some options changed. Giving `grid` disables `scales`, and vice versa.

    Raises:
        ValueError: unknown preset, or a value out of range.
        TypeError: unknown option (the message lists the known ones), or a value of the wrong type.
    """
    check_choice("preset", preset, tuple(PRESETS))
    unknown = sorted(set(options) - set(OPTION_NAMES))
    if unknown:
        raise TypeError(
            f"unknown option{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}; "
            f"known are {', '.join(OPTION_NAMES)}"
        )
    for given, other in (("grid", "scales"), ("scales", "grid")):
        if options.get(given) is not None:
            options.setdefault(other, None)
    return dataclasses.replace(PRESETS[preset], **options)
