"""Saliency averaged over segments of the image, so that masks end at its edges."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sp_fast.proposals.pyramid import resized

# Chosen on coco_mini/train and nuclei/train.
_SIDE = 320  # longer side in pixels of the image that is segmented
_SCALE = 60.0  # larger: larger segments
_BLUR = 0.5  # pixels, before segmenting
_SMALLEST = 30  # pixels of a segment
_LEVELS = 2**16  # integers add up to the same sum in any order, on any device
_AT_ONCE = 16  # masks; memory for large tensors takes longer to get than to fill


def image_segments(image: Tensor) -> Tensor:
    """Divide an image into segments of even colour, by the graph-based method.

    The image is first resized to 320 pixels along its longer side.

    Args:
        image: uint8 [3, H, W], RGB.

    Returns:
        int64 [h, w] on the CPU, the number of the segment of each pixel of the resized image.

    Source: Felzenszwalb and Huttenlocher, Efficient Graph-Based Image Segmentation, IJCV 2004.
    """
    from skimage.segmentation import felzenszwalb

    pixels = resized(image.cpu(), _SIDE, _SIDE).permute(1, 2, 0).contiguous().numpy()
    segments = felzenszwalb(pixels, scale=_SCALE, sigma=_BLUR, min_size=_SMALLEST)
    return torch.from_numpy(segments).long()


def refined_saliency(saliency: Tensor, threshold: Tensor, segments: Tensor) -> Tensor:
    """Average the saliency of masks over each segment, so that a segment belongs to a mask or does not.

    The saliency is resized to the segments bilinearly. A mask that fills no segment, and would be empty,
    stays as it is.

    Args:
        saliency: fp32 [K, h, w] in [0, 1].
        threshold: fp32 [K], least saliency inside each mask.
        segments: int64 [H, W], numbers from 0 on; moved to the device of `saliency`.

    Returns:
        fp32 [K, H, W] in [0, 1].
    """
    if not len(saliency):
        return saliency.new_zeros(0, *segments.shape)
    here = segments.to(saliency.device).flatten()
    area = torch.bincount(here)  # [S]
    refined = saliency.new_empty(len(saliency), *segments.shape)
    parts = zip(*(one.split(_AT_ONCE) for one in (saliency, threshold, refined)), strict=True)
    for coarse, least, out in parts:
        fine = F.interpolate(coarse[None], tuple(segments.shape), mode="bilinear", align_corners=False)[0]
        levels = (fine.flatten(1) * _LEVELS).round_().long()
        total = levels.new_zeros(len(levels), len(area)).index_add_(1, here, levels)  # [k, S]
        mean = total.double() / (_LEVELS * area)
        kept = (mean >= least[:, None]).any(dim=1)  # [k]
        even = mean.float().index_select(1, here).view_as(fine)
        torch.where(kept[:, None, None], even, fine, out=out)
    return refined
