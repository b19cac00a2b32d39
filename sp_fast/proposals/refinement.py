"""Saliency averaged over segments of the image, so that masks end at its edges."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sp_fast.ops import PackedMasks, mask_nms
from sp_fast.proposals.pyramid import resized

# Chosen on coco_mini/train and nuclei/train.
_SIDE = 320  # longer side in pixels of the image that is segmented, or that of a larger map
_SCALE = 60.0  # larger: larger segments
_BLUR = 0.5  # pixels, before segmenting
_SMALLEST = 30  # pixels of a segment
_LEAST_OVERLAP = 0.1  # IoU of a refined mask with the mask before
_MOST_OVERLAP = 0.6  # IoU of two refined masks
_LEVELS = 2**16  # integers add up to the same sum in any order, on any device
_AT_ONCE = 16  # masks; allocating large tensors takes longer than filling them


def image_segments(image: Tensor, least: int = 0) -> Tensor:
    """Divide an image into segments of even colour, by the graph-based method.

    The image is first resized to 320 pixels along its longer side, or to `least` if that is more.

    Args:
        image: uint8 [3, H, W], RGB.
        least: longer side of the map to refine, so that none of its cells is lost.

    Returns:
        int64 [h, w] on the CPU, the number of the segment of each pixel of the resized image.

    Source: Felzenszwalb and Huttenlocher, Efficient Graph-Based Image Segmentation, IJCV 2004.
    """
    from skimage.segmentation import felzenszwalb

    side = max(_SIDE, least)
    pixels = resized(image.cpu(), side, side).permute(1, 2, 0).contiguous().numpy()
    segments = felzenszwalb(pixels, scale=_SCALE, sigma=_BLUR, min_size=_SMALLEST)
    return torch.from_numpy(segments).long()


def refined_saliency(saliency: Tensor, threshold: Tensor, segments: Tensor) -> Tensor:
    """Average the saliency of masks over each segment, so that a segment belongs to a mask or does not.

    The saliency is resized to the segments bilinearly. A mask stays as it is if none of it would be left, or
    if its IoU with the refined mask would be below 0.1.

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
        inside, chosen = fine.flatten(1) >= least[:, None], mean >= least[:, None]
        held = area.new_zeros(chosen.shape).index_add_(1, here, inside.long())  # [k, S]
        shared, size = (held * chosen).sum(1), (area * chosen).sum(1)
        kept = shared >= _LEAST_OVERLAP * (size + inside.sum(1) - shared).clamp(min=1)
        even = mean.float().index_select(1, here).view_as(fine)
        torch.where(kept[:, None, None], even, fine, out=out)
    return refined


def distinct(saliency: Tensor, threshold: Tensor, iou_threshold: float, most: int) -> Tensor:
    """Choose masks that are still distinct: refining can make two masks equal.

    A mask is left out if its IoU with a better one is above 0.6, or above `iou_threshold` if that is more.

    Args:
        saliency: fp32 [K, H, W], refined, best mask first.
        threshold: fp32 [K], least saliency inside each mask.
        iou_threshold: largest IoU of two masks before refining.
        most: largest number of masks to choose.

    Returns:
        int64 [at most `most`], on the device of `saliency`, best first.
    """
    rank = torch.arange(len(saliency), device=saliency.device)
    masks = PackedMasks.pack(saliency[None] >= threshold[None, :, None, None])
    largest = max(iou_threshold, _MOST_OVERLAP)
    kept = mask_nms(masks, -rank[None].float(), iou_threshold=largest, min_area=1, max_masks=most)[0]
    return kept[kept >= 0]
