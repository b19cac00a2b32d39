"""The families of detectors that can be exported."""

from __future__ import annotations

from torch import Tensor, nn

from sp_fast.export.mask2former import Mask2FormerSegmenter
from sp_fast.export.queryinst import QueryInstSegmenter
from sp_fast.export.segmenter import MapSegmenter, Segmenter, rows_of
from sp_fast.knet.masks import upsample
from sp_fast.knet.prediction import kernel_quality, select_top


class KNetSegmenter(MapSegmenter):
    """K-Net; see `sp_fast.knet.prediction`."""

    def instances(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the base class; maps are probabilities."""
        cls_logits, mask_logits = self.detector(pixels)
        quality = kernel_quality(cls_logits, mask_logits) if self.detector.rerank else None
        scores, labels, kernels = select_top(cls_logits, self.detector.max_per_img, quality)
        return scores, labels, upsample(rows_of(mask_logits, kernels)).sigmoid()

    def decide(self, scores: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class."""
        return scores, maps > self.detector.mask_thr


SEGMENTERS: dict[str, type[Segmenter]] = {
    "KNet": KNetSegmenter,
    "Mask2Former": Mask2FormerSegmenter,
    "QueryInst": QueryInstSegmenter,
}


def segmenter(detector: nn.Module, scale: tuple[int, int]) -> Segmenter:
    """The module to export for a detector.

    Raises:
        ValueError: a family of detectors that cannot be exported.
    """
    name = type(detector).__name__
    if name not in SEGMENTERS:
        raise ValueError(
            f"model: expected a detector that can be exported ({', '.join(SEGMENTERS)}), got {name}"
        )
    return SEGMENTERS[name](detector, scale).eval()
