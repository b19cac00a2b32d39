"""Candidate masks of one feature map: several thresholds, whole masks and their connected parts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sp_fast.ops import PackedMasks, connected_parts, mask_nms, seed_saliency
from sp_fast.ops.reference import normalized_saliency
from sp_fast.proposals.objectness import contrast, means_inside, stability
from sp_fast.proposals.presets import ProposalOptions

# Limits that bound memory; on coco_mini/train larger ones did not raise the recall of the 100 best masks.
_WHOLE = 200  # different masks per threshold, before they are cut into parts
_PARTS = 8  # parts per mask
_KEPT = 150  # candidates per threshold
_SAME = 0.8  # IoU above which two seeds have found the same mask
_ALIKE = 0.75  # IoU above which the less stable one of two candidates is removed


@dataclass(frozen=True)
class Candidates:
    """Candidate masks of a batch of feature maps; empty masks fill up the N of an image.

    Attributes:
        saliency: fp32 [B, N, h, w]; 0 in other parts of the mask that a part was cut from.
        threshold: fp32 [N], least saliency inside each mask.
        stability: fp32 [B, N], see `stability`; 0 for empty masks.
        contrast: fp32 [B, N], see `contrast`, of the features.
        vectors: fp32 [B, N, D], mean features inside the masks.
        seed_index: int64 [B, N], index of the seed; -1 for empty masks.
    """

    saliency: Tensor
    threshold: Tensor
    stability: Tensor
    contrast: Tensor
    vectors: Tensor
    seed_index: Tensor


def find_candidates(features: Tensor, valid: Tensor, options: ProposalOptions) -> Candidates:
    """Cut the saliency of every seed (Eq. 3-4) at every threshold, and each mask into its connected parts.

    At each threshold the most stable candidates that differ are kept.

    Args:
        features: fp32 [B, D, h, w].
        valid: int64 [B, 2], height and width in cells of the valid part of each map.
        options: options of the proposer.
    """
    found = [_at_threshold(features, valid, options, threshold) for threshold in options.thresholds]
    rows = {
        name: torch.cat([getattr(one, name) for one in found], dim=1)
        for name in ("saliency", "stability", "contrast", "vectors", "seed_index")
    }
    return Candidates(threshold=torch.cat([one.threshold for one in found]), **rows)


def _at_threshold(features: Tensor, valid: Tensor, options: ProposalOptions, threshold: float) -> Candidates:
    masks, score, seeds = seed_saliency(
        features, options.grid, valid=valid, similarity=options.similarity, threshold=threshold
    )
    place = mask_nms(masks, score, iou_threshold=_SAME, min_area=options.min_area, max_masks=_WHOLE)
    place = place[:, : seeds.shape[1]]
    seeds = _rows(seeds, place)  # [B, W, D]
    y, defined = normalized_saliency(features, seeds, valid, options.similarity)
    y = torch.where(defined, y, 0).unflatten(2, features.shape[2:])  # [B, W, h, w]
    words = torch.where((place >= 0)[..., None], _rows(masks.words, place), 0)
    whole = PackedMasks(words, masks.height, masks.width)
    parts, _ = connected_parts(whole, max_parts=_PARTS, min_area=options.min_area)
    words = torch.cat([words[:, :, None], parts.words], dim=2)  # [B, W, 1 + P, W32]
    inside = PackedMasks(words, masks.height, masks.width).unpack()  # [B, W, 1 + P, h, w]
    stable = stability(inside, y[:, :, None], threshold)
    flat = PackedMasks(words.flatten(1, 2), masks.height, masks.width)
    kept = mask_nms(
        flat, stable.flatten(1), iou_threshold=_ALIKE, min_area=options.min_area, max_masks=_KEPT
    )  # [B, N]
    there = kept >= 0
    kept, parent = kept.clamp(min=0), kept.clamp(min=0) // words.shape[2]
    own = _rows(inside.flatten(1, 2), kept) & there[..., None, None]  # [B, N, h, w]
    y = _rows(y, parent)
    # Between parts the saliency is below the threshold; it stays, so that outlines are smooth.
    other = _rows(whole.unpack(), parent) & ~own
    vectors = means_inside(features, own)
    return Candidates(
        saliency=torch.where(other | ~there[..., None, None], 0, y),
        threshold=torch.full(kept.shape[1:], threshold, device=y.device),
        stability=torch.where(there, stable.flatten(1).gather(1, kept), 0),
        contrast=contrast(features, own, vectors),
        vectors=vectors,
        seed_index=torch.where(there, place.gather(1, parent), -1),
    )


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """Take rows `index` [B, N] of values [B, M, ...]; negative ones take the first."""
    image = torch.arange(len(values), device=values.device)[:, None]
    return values[image, index.clamp(min=0)]
