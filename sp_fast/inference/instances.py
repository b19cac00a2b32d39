"""What a model finds in one image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Instances:
    """The n instances found in an image of H x W pixels, best first.

    Attributes:
        masks: bool [n, H, W].
        boxes: float32 [n, 4], tight half-open xyxy in pixels.
        scores: float32 [n], 0 to 1.
        labels: int64 [n], indices into `classes`.
        classes: names of all classes of the model.
    """

    masks: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """Class name of each instance."""
        return [self.classes[label] for label in self.labels]
