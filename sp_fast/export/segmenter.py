"""What `torch.export` traces: a detector with its pre- and post-processing, in tensor operations only."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from sp_fast.export.preprocessing import Prepared, Preprocessing
from sp_fast.knet.prediction import tight_boxes

Found = tuple[Tensor, Tensor, Tensor, Tensor]


class Segmenter(nn.Module):
    """Base class: from RGB images to instances at their size.

    Args:
        detector: the trained detector.
        scale: largest longer and shorter side of the resized images.
    """

    def __init__(self, detector: Any, scale: tuple[int, int]) -> None:
        super().__init__()
        self.preprocessing = Preprocessing(scale, detector.data_preprocessor)
        self.detector = detector

    def forward(self, images: Tensor) -> Found:
        """Finds the instances of images.

        Args:
            images: RGB, uint8 `[B, H, W, 3]`.

        Returns:
            Scores fp32 `[B, K]`, labels int64 `[B, K]`, tight half-open xyxy boxes fp32 `[B, K, 4]` in pixels
            (zeros for an empty mask) and masks bool `[B, K, H, W]`.
        """
        scores, labels, masks = self.find(self.preprocessing(images), images.shape[1:3])
        return scores, labels, tight_boxes(masks.flatten(0, 1)).unflatten(0, scores.shape), masks

    def find(self, prepared: Prepared, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Scores and labels `[B, K]` and masks, bool `[B, K, *size]`, of prepared images."""
        raise NotImplementedError


class MapSegmenter(Segmenter):
    """Base class of families that predict maps of the whole image."""

    def find(self, prepared: Prepared, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """See the base class. The maps are resized as in the detectors' own post-processing."""
        pixels, height, width = prepared
        scores, labels, maps = self.instances(pixels)
        maps = F.interpolate(maps, size=pixels.shape[-2:], mode="bilinear", align_corners=False)
        maps = maps[..., :height, :width]
        maps = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
        scores, masks = self.decide(scores, maps)
        return scores, labels, masks

    def instances(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores and labels `[B, K]` and maps `[B, K, h, w]` of padded images `[B, 3, H, W]`."""
        raise NotImplementedError

    def decide(self, scores: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Final scores `[B, K]` and masks, bool `[B, K, H, W]`, from the maps at image size."""
        raise NotImplementedError


def rows_of(maps: Tensor, index: Tensor) -> Tensor:
    """The maps `[B, K, h, w]` that an index `[B, K]` selects among `[B, N, h, w]`."""
    return maps.gather(1, index[:, :, None, None].expand(-1, -1, *maps.shape[2:]))
