"""What all models that predict have in common."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, overload

import numpy as np
from PIL import Image

from sp_fast.data.images import pil_to_rgb, read_image
from sp_fast.inference.instances import Instances
from sp_fast.inference.tiles import predict_tiled

ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray


class UnfitImageError(ValueError):
    """An image of a size, H and W first, that a model cannot predict."""

    def __init__(self, size: tuple[int, ...], cause: Exception) -> None:
        reason = str(cause).strip().splitlines()[0]
        super().__init__(
            f"image: the model cannot predict one of {size[0]} x {size[1]} pixels (height x width): {reason}"
        )


class Model(ABC):
    """A model that finds instances; made by `sp_fast.load`.

    Attributes:
        classes: names of the classes.
        batch_size: largest number of images, or tiles, that run at once.
        highest_score: of all instances found since it was last set, those below the threshold too.
    """

    def __init__(self, classes: tuple[str, ...], batch_size: int = 1) -> None:
        self.classes = tuple(classes)
        self.batch_size = batch_size
        self.highest_score = 0.0

    @abstractmethod
    def _infer(self, images: list[np.ndarray]) -> list[Instances]:
        """The instances of all scores in RGB images, uint8 [H, W, 3], at image size and best first."""

    @overload
    def predict(
        self, images: ImageLike, *, threshold: float = ..., top_k: int = ..., tile: int | None = ...
    ) -> Instances: ...

    @overload
    def predict(
        self,
        images: list[Any] | tuple[Any, ...],
        *,
        threshold: float = ...,
        top_k: int = ...,
        tile: int | None = ...,
    ) -> list[Instances]: ...

    def predict(
        self, images: Any, *, threshold: float = 0.3, top_k: int = 100, tile: int | None = None
    ) -> Instances | list[Instances]:
        """Finds the instances of an image, or of each image of a list.

        The result for an image does not depend on the other images of the list.

        Args:
            images: an image, or a list of images: a path, a PIL image or an RGB array, uint8 [H, W, 3].
                The EXIF orientation of files and PIL images is applied.
            threshold: least score, 0 to 1.
            top_k: largest number of instances of an image.
            tile: side in pixels of the overlapping tiles that large images are also predicted in, for objects
                that are too small when the whole image is resized; at least 64. None: only whole images.

        Returns:
            `Instances` for one image; a list of them for a list.

        Raises:
            FileNotFoundError, BrokenImageError: no such image file, or one that cannot be decoded.
            UnfitImageError: an image that the model cannot predict, such as one of 5000 x 1 pixels.
            ValueError: an argument of another type, shape or range.
        """
        check_options(threshold, top_k, tile)
        if not isinstance(images, (list, tuple)):
            return self.predict([images], threshold=threshold, top_k=top_k, tile=tile)[0]
        pixels = [as_pixels(image) for image in images]
        if tile is None:
            found = list(self._in_batches(pixels))
        else:
            found = [predict_tiled(self._in_batches, image, tile, threshold, top_k) for image in pixels]
        return [one.select(threshold, top_k) for one in found]

    def _in_batches(self, images: Iterable[np.ndarray]) -> Iterator[Instances]:
        upcoming = iter(images)
        while batch := list(islice(upcoming, self.batch_size)):
            for found in self._infer(batch):
                self.highest_score = max(self.highest_score, float(found.scores.max(initial=0.0)))
                yield found


def check_options(threshold: float, top_k: int, tile: int | None) -> None:
    """Raise ValueError for options of `Model.predict` that are out of range."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold: expected a score from 0 to 1, got {threshold}")
    if isinstance(top_k, bool) or not isinstance(top_k, int) or top_k < 1:
        raise ValueError(f"top_k: expected a whole number of at least 1, got {top_k!r}")
    if tile is not None and (isinstance(tile, bool) or not isinstance(tile, int) or tile < 64):
        raise ValueError(f"tile: expected a side of at least 64 pixels, got {tile!r}")


def as_pixels(image: ImageLike) -> np.ndarray:
    """An image as RGB, uint8 [H, W, 3]; see `Model.predict`."""
    if isinstance(image, (str, os.PathLike)):
        return read_image(image)
    if isinstance(image, Image.Image):
        return pil_to_rgb(image)
    if not isinstance(image, np.ndarray):
        raise ValueError(
            f"image: expected a path, a PIL image or an array, uint8 [H, W, 3], got {type(image).__name__}"
        )
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(
            f"image: expected an RGB array, uint8 [H, W, 3], got {image.dtype} {list(image.shape)}; convert "
            "other images with PIL.Image.fromarray(...).convert('RGB')"
        )
    return image
