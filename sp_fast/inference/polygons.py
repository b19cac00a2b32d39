"""Masks as polygons, for file formats without run lengths."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def polygons(mask: np.ndarray) -> list[np.ndarray]:
    """The outlines of a mask's connected parts, largest first.

    A hole is joined to its part's outline by a line that runs there and back, so that the polygon, filled by
    the even-odd rule with its outline, covers the mask.

    Args:
        mask: bool [H, W].

    Returns:
        A polygon for each part, float32 [at least 3, 2]: x and y of the centres of pixels on the outline, in
        pixels from the image's upper left corner.
    """
    import cv2

    found, hierarchy = cv2.findContours(mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    parts = []
    for k, contour in enumerate(found):
        if hierarchy[0, k, 3] < 0:  # no parent: an outline
            holes = [found[j][:, 0] for j in range(len(found)) if hierarchy[0, j, 3] == k]
            parts.append((cv2.contourArea(contour), joined([contour[:, 0], *holes])))
    parts.sort(key=lambda part: -part[0])
    return [_at_least_three(points).astype(np.float32) + 0.5 for _, points in parts]


def joined(rings: Sequence[np.ndarray]) -> np.ndarray:
    """One polygon [n, 2] through all rings, each joined at its nearest point by a line there and back."""
    path = rings[0]
    for ring in rings[1:]:
        distances = np.abs(path[:, None] - ring[None]).sum(2)
        i, j = np.unravel_index(distances.argmin(), distances.shape)
        path = np.concatenate([path[: i + 1], ring[j:], ring[: j + 1], path[i:]])
    return path


def _at_least_three(points: np.ndarray) -> np.ndarray:
    """The points of a part of one pixel, or of a line, repeated."""
    return points if len(points) >= 3 else np.resize(points, (3, 2))
