"""Candidate masks of one feature map: several thresholds, whole masks and their connected parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from sp_fast.ops import PackedMasks, connected_parts, mask_nms, seed_saliency
from sp_fast.proposals.objectness import MARGIN, contrast, means_inside, stability
from sp_fast.proposals.presets import ProposalOptions
from sp_fast.proposals.seeds import saliency_maps
from sp_fast.proposals.selection import best, rows_of

# Limits that bound time and memory.
_WHOLE = 200  # different masks per threshold, before they are cut into parts
_PARTS = 40  # parts per mask
_MASKS = 2000  # masks and parts per threshold, parts of large masks last
_KEPT = 150  # candidates per threshold
_SAME = 0.8  # IoU above which two seeds have found the same mask
_ALIKE = 0.75  # IoU above which the less stable one of two candidates is removed
_CELLS_AT_ONCE = 2**24  # cells of masks that are unpacked at a time


@dataclass(frozen=True)
class Candidates:
    """Candidate masks of a batch of feature maps; empty masks fill up the N of an image.

    Attributes:
        words: int32 [B, N, W32], the masks, packed.
        seeds: [B, N, D], the seeds that the saliency of the masks is of.
        threshold: fp32 [B, N], least saliency inside each mask.
        stability: fp32 [B, N], see `stability`; 0 for empty masks.
        contrast: fp32 [B, N], see `contrast`, of the features.
        vectors: fp32 [B, N, D], mean features inside the masks.
        seed_index: int64 [B, N], index of the seed; -1 for empty masks.
    """

    words: Tensor
    seeds: Tensor
    threshold: Tensor
    stability: Tensor
    contrast: Tensor
    vectors: Tensor
    seed_index: Tensor

    @classmethod
    def join(cls, several: Sequence[Candidates]) -> Candidates:
        """Concatenate the candidates of maps of the same size and images."""
        return cls(*(torch.cat([getattr(one, field.name) for one in several], 1) for field in fields(cls)))

    def take(self, index: Tensor) -> Candidates:
        """Take rows [B, K]; negative indices take the first."""
        return Candidates(*(rows_of(getattr(self, field.name), index) for field in fields(self)))

    def saliency(self, features: Tensor, valid: Tensor, similarity: str) -> Tensor:
        """Saliency of each mask, fp32 [B, N, h, w]: where it is a part, 0 in the other parts of the whole.

        Between parts the saliency is below the threshold; it stays, so that outlines are smooth.
        """
        y = saliency_maps(features, self.seeds, valid, similarity)
        own = PackedMasks(self.words, *features.shape[2:]).unpack()
        return torch.where((y >= self.threshold[..., None, None]) & ~own, 0, y)


def find_candidates(
    features: Tensor, valid: Tensor, threshold: float, options: ProposalOptions
) -> Candidates:
    """Cut the saliency of every seed (Eq. 3-4) at a threshold, and each mask into its connected parts.

    Of candidates that overlap much, the most stable is kept.

    Args:
        features: fp32 [B, D, h, w], zero beyond the valid part.
        valid: int64 [B, 2], height and width in cells of the valid part of each map.
        threshold: least saliency inside a mask.
        options: options of the proposer.
    """
    masks, score, seeds = seed_saliency(
        features, options.grid, valid=valid, similarity=options.similarity, threshold=threshold
    )
    height, width = masks.height, masks.width
    place = mask_nms(masks, score, iou_threshold=_SAME, min_area=options.min_area, max_masks=_WHOLE)
    place = place[:, : seeds.shape[1]]  # [B, W]
    seeds = rows_of(seeds, place)
    whole = torch.where((place >= 0)[..., None], rows_of(masks.words, place), 0)
    words, parent = _with_parts(PackedMasks(whole, height, width), options.min_area)
    y = saliency_maps(features, seeds, valid, options.similarity)
    higher, lower = (PackedMasks.pack(y >= threshold + margin).words for margin in (MARGIN, -MARGIN))
    found = []
    for some, own in _split(words, parent, height * width):
        packed = (
            PackedMasks(one, height, width) for one in (some, rows_of(higher, own), rows_of(lower, own))
        )
        found.append(stability(*packed))
    stable = torch.cat(found, dim=1)
    kept = mask_nms(
        PackedMasks(words, height, width),
        stable,
        iou_threshold=_ALIKE,
        min_area=options.min_area,
        max_masks=_KEPT,
    )  # [B, N]
    there, parent = kept >= 0, parent.gather(1, kept.clamp(min=0))
    words = torch.where(there[..., None], rows_of(words, kept), 0)
    inside = PackedMasks(words, height, width).unpack()
    vectors = means_inside(features, inside)
    return Candidates(
        words=words,
        seeds=rows_of(seeds, parent),
        threshold=torch.full(kept.shape, threshold, device=words.device),
        stability=torch.where(there, rows_of(stable, kept), 0),
        contrast=contrast(features, inside, vectors),
        vectors=vectors,
        seed_index=torch.where(there, rows_of(place, parent), -1),
    )


def _with_parts(whole: PackedMasks, min_area: int) -> tuple[Tensor, Tensor]:
    """Masks [B, W], then their largest parts, and so on: words [B, N, W32], index of the whole [B, N]."""
    count = whole.shape[1]
    parts, _ = connected_parts(whole, max_parts=_PARTS, min_area=min_area)
    words = torch.cat([whole.words[:, None], parts.words.transpose(1, 2)], dim=1).flatten(1, 2)
    filled = PackedMasks(words, whole.height, whole.width).area() > 0
    order = best(torch.where(filled, 0, -torch.inf), _MASKS)
    words = torch.where((order >= 0)[..., None], rows_of(words, order), 0)
    return words, order.clamp(min=0) % max(count, 1)


def _split(words: Tensor, parent: Tensor, cells: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Divide masks so that no more than _CELLS_AT_ONCE cells are unpacked at a time."""
    step = max(1, _CELLS_AT_ONCE // (len(words) * cells or 1))
    return zip(words.split(step, 1), parent.split(step, 1), strict=True)
