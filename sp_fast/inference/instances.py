"""What a model finds in one image."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sp_fast.data.images import pil_to_rgb, read_image
from sp_fast.drawing import PALETTE, overlay


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

    @classmethod
    def from_masks(
        cls, masks: np.ndarray, scores: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]
    ) -> Instances:
        """Instances in order of their scores, with tight boxes, without those that have no pixel."""
        order = np.argsort(-scores, kind="stable")
        inside = np.asarray(masks.any((1, 2)))
        order = order[inside[order]]
        masks = masks[order]
        boxes = np.array([_tight_box(mask) for mask in masks], dtype=np.float32).reshape(-1, 4)
        return cls(
            masks, boxes, scores[order].astype(np.float32), labels[order].astype(np.int64), tuple(classes)
        )

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """Class name of each instance."""
        return [self.classes[label] for label in self.labels]

    def select(self, threshold: float = 0.0, top_k: int | None = None) -> Instances:
        """The instances with a score of at least `threshold`, at most `top_k` of them."""
        count = int((self.scores >= threshold).sum())  # they are in order of their scores
        return self[: count if top_k is None else min(count, top_k)]

    def __getitem__(self, rows: Any) -> Instances:
        """The instances of an index that keeps an array's first dimension: a slice, a mask or a list."""
        return replace(
            self,
            masks=self.masks[rows],
            boxes=self.boxes[rows],
            scores=self.scores[rows],
            labels=self.labels[rows],
        )

    def to_supervision(self) -> Any:
        """The instances as `supervision.Detections`, with `class_name` in `data`."""
        try:
            import supervision
        except ImportError:
            raise ImportError("to_supervision needs supervision: pip install supervision") from None
        return supervision.Detections(
            xyxy=self.boxes,
            mask=self.masks,
            confidence=self.scores,
            class_id=self.labels,
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def draw(
        self, image: str | os.PathLike[str] | Image.Image | np.ndarray, side: int | None = None
    ) -> Image.Image:
        """Draws the masks over their image, with class names and scores.

        Args:
            image: the image that was predicted: path, PIL image, or RGB array, uint8 [H, W, 3].
            side: longer side of the picture in pixels; None: that of the image.

        Returns:
            A PIL image, RGB.

        Raises:
            ValueError: the image has another size than the masks.
        """
        if isinstance(image, (str, os.PathLike)):
            image = read_image(image)
        elif isinstance(image, Image.Image):
            image = pil_to_rgb(image)
        if image.shape[:2] != self.masks.shape[1:]:
            raise ValueError(
                f"image: expected the image of the masks, {self.masks.shape[1]} x {self.masks.shape[2]} "
                f"(height x width), got {image.shape[0]} x {image.shape[1]}"
            )
        colours = [PALETTE[k % len(PALETTE)] for k in range(len(self))]
        side = side or max(image.shape[:2])
        picture = Image.fromarray(overlay(image, list(self.masks), colours, side))
        scale = picture.width / image.shape[1], picture.height / image.shape[0]
        _write_labels(picture, self, colours, scale)
        return picture


def _tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    xs, ys = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


def _write_labels(
    picture: Image.Image, found: Instances, colours: list[np.ndarray], scale: tuple[float, float]
) -> None:
    """Writes class and score on each instance's colour at its box, the best on top."""
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=max(10, round(max(picture.size) / 60)))
    for k in reversed(range(len(found))):
        text = f"{found.names[k]} {found.scores[k]:.2f}"
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        width, height = right - left + 4, bottom - top + 4
        x = min(found.boxes[k, 0] * scale[0], picture.width - width)
        y = min(found.boxes[k, 1] * scale[1] - height, picture.height - height)
        x, y = max(x, 0), max(y, 0)
        colour = tuple(int(value) for value in colours[k])
        draw.rectangle((x, y, x + width, y + height), fill=colour)
        dark = np.dot(colours[k], (0.299, 0.587, 0.114)) > 110
        draw.text((x + 2 - left, y + 2 - top), text, fill="black" if dark else "white", font=font)
