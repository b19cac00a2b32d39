"""Options of the saliency proposals, and the presets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sp_fast.ops.checks import check_choice, check_grids, check_int, check_number

_CHOICES = {
    "similarity": ("dot", "cosine"),
    "nms": ("mask", "matrix"),
    "ranking": ("saliency", "objectness"),
    "matrix_kernel": ("gaussian", "linear"),
    "refine": ("none", "segments"),
}


@dataclass(frozen=True)
class ProposalOptions:
    """Options for making proposals from features. Exactly one of `grid` and `scales` is not None.

    Attributes:
        grid: (rows, columns) of the average-pooling grid of seeds, or a sequence of such pairs.
        scales: factors in (0, 1] by which the features are resized to seeds, bilinearly.
        sizes: longer sides in pixels at which the features of an image are computed; None: as it is given.
        center: subtract the mean feature of each image from its features.
        similarity: similarity of a seed and a cell, "dot" or "cosine".
        threshold: least normalised saliency inside a mask, in [0, 1]; or several of them, for `objectness`.
        ranking: "saliency": masks are ranked by the mean saliency inside. "objectness": masks and their
            connected parts, at all sizes and thresholds, are ranked by `objectness`; needs a grid, mask NMS.
        nms: non-maximum suppression, "mask" (greedy, by IoU) or "matrix" (decayed scores).
        iou_threshold: mask NMS removes a mask whose IoU with a better one is above this.
        matrix_kernel: decay function of matrix NMS, "gaussian" or "linear".
        sigma: sharpness of matrix NMS's Gaussian decay.
        min_area: smallest area of a mask, in cells.
        max_masks: largest number of masks that NMS keeps, K.
        min_center_height: keep masks whose centre is further down than this share of the height; None: all.
        max_box_width: keep masks whose box is narrower than this share of the width; None: all.
        min_score: keep masks with at least this score after NMS; None: all.
        refine: "segments": masks at image size (`propose_folder`) consist of whole segments of the image, see
            `refined_saliency`; of those that it makes alike, one is kept, see `distinct`. NMS and the filters
            act before refining. Masks on the grid of the features stay as they are.
    """

    grid: tuple[tuple[int, int], ...] | None = ((10, 10),)
    scales: tuple[float, ...] | None = None
    sizes: tuple[int, ...] | None = None
    center: bool = False
    similarity: str = "dot"
    threshold: float | tuple[float, ...] = 0.5
    ranking: str = "saliency"
    nms: str = "mask"
    iou_threshold: float = 0.5
    matrix_kernel: str = "gaussian"
    sigma: float = 2.0
    min_area: int = 2
    max_masks: int = 20
    min_center_height: float | None = None
    max_box_width: float | None = None
    min_score: float | None = None
    refine: str = "none"

    def __post_init__(self) -> None:
        """Check every option.

        Raises:
            TypeError, ValueError: a bad option; the message says what was expected and what was given.
        """
        if (self.grid is None) == (self.scales is None):
            raise ValueError(
                f"grid, scales: expected exactly one of the two, got grid={self.grid}, scales={self.scales}"
            )
        for name, choices in _CHOICES.items():
            check_choice(name, getattr(self, name), choices)
        if isinstance(self.threshold, Sequence) and not isinstance(self.threshold, str):
            object.__setattr__(self, "threshold", tuple(self.threshold))
        if not self.thresholds:
            raise ValueError("threshold: expected at least one number, got none")
        for threshold in self.thresholds:
            check_number("threshold", threshold, 0, 1)
        if self.sizes is not None:
            object.__setattr__(self, "sizes", tuple(self.sizes))
            for side in self.sizes or (0,):
                check_int("sizes", side, 1)
        self._check_ranking()
        check_number("iou_threshold", self.iou_threshold, 0, 1)
        for name in ("min_center_height", "max_box_width", "min_score"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), 0, 1)
        check_number("sigma", self.sigma, 0, math.inf)
        check_int("min_area", self.min_area, 1)
        check_int("max_masks", self.max_masks, 1)
        if not isinstance(self.center, bool):
            raise TypeError(f"center: expected True or False, got {self.center!r}")
        if self.grid is not None:
            object.__setattr__(self, "grid", check_grids(self.grid))
        if self.scales is not None:
            if not self.scales or any(type(s) not in (int, float) or not 0 < s <= 1 for s in self.scales):
                raise ValueError(f"scales: expected factors above 0 and up to 1, got {self.scales!r}")
            object.__setattr__(self, "scales", tuple(float(scale) for scale in self.scales))

    @property
    def thresholds(self) -> tuple[float, ...]:
        """All values of `threshold`."""
        return self.threshold if isinstance(self.threshold, tuple) else (self.threshold,)

    def _check_ranking(self) -> None:
        if self.ranking == "objectness":
            if self.grid is None or self.nms != "mask":
                raise ValueError(
                    f"ranking: objectness needs grid, nms='mask'; got scales={self.scales}, nms={self.nms!r}"
                )
            return
        for name in ("sizes", "threshold"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) > 1:
                raise ValueError(f"{name}: expected one value with ranking='saliency', got {value}")


# `paper`: Eq. 3-4 of the paper. `official`: what the authors' released code does. `multiscale`: ours.
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
    "multiscale": ProposalOptions(
        grid=((20, 20), (10, 10)),
        sizes=(640, 1280, 1920),
        threshold=(0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
        ranking="objectness",
        iou_threshold=0.4,
        max_masks=40,
        refine="segments",
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
