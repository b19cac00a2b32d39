"""Saliency mask proposals from features or images (Eq. 3-4 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sp_fast.ops import PackedMasks, mask_nms, matrix_nms, seed_saliency
from sp_fast.ops.reference import normalized_saliency
from sp_fast.ops.take_proposals import take_proposals
from sp_fast.proposals.backbones import Backbone
from sp_fast.proposals.extents import whole_maps
from sp_fast.proposals.filters import geometry_filter
from sp_fast.proposals.presets import resolve_options
from sp_fast.proposals.seeds import resized_seeds


@dataclass(frozen=True)
class Proposals:
    """Proposals of a batch, best first, padded to K = max_masks per image.

    Attributes:
        masks: [B, K] at the size of the feature map; empty past `count`.
        score: fp32 [B, K], mean saliency inside the mask (decayed by matrix NMS); 0 past `count`.
        seeds: [B, K, D], vectors that the masks were made from; 0 past `count`.
        seed_index: int64 [B, K], index of the seed among the image's seeds: row-major, grid by grid (or scale
            by scale) in the order given; -1 past `count`. It does not depend on the padding.
        count: int64 [B], number of proposals.
        valid: int64 [B, 2], height and width in cells of the valid part of each map; None: the whole map.
    """

    masks: PackedMasks
    score: Tensor
    seeds: Tensor
    seed_index: Tensor
    count: Tensor
    valid: Tensor | None = None


class SaliencyProposer(nn.Module):
    """Proposes masks of salient objects, without labels or training.

    Seeds S are average-pooled from features X (or resized); the saliency of a seed is its similarity with
    every cell, scaled linearly to [0, 1]; its mask is where the saliency is at least `threshold`, and its
    score is the mean saliency inside. Non-maximum suppression and filters keep the best masks.

    Args:
        backbone: from `build_backbone`; needed for images, not for features.
        preset: "paper" or "official".
        options: changes to the preset, see `ProposalOptions`.

    Raises:
        ValueError, TypeError: unknown preset or option, or a value out of range.
    """

    def __init__(self, backbone: Backbone | None = None, *, preset: str = "paper", **options: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.preset = preset
        self.options = resolve_options(preset, **options)

    def forward(self, images: Tensor | Sequence[Tensor]) -> Proposals:
        """See `from_images`."""
        return self.from_images(images)

    @torch.no_grad()
    def from_images(self, images: Tensor | Sequence[Tensor]) -> Proposals:
        """Propose masks for images of any sizes; they do not depend on the rest of the batch.

        Args:
            images: [B, 3, H, W] or a sequence of [3, H, W]; RGB, uint8 or floating point in 0..255, on the
                backbone's device.

        Raises:
            ValueError: no backbone, or images of a wrong shape.
        """
        if self.backbone is None:
            raise ValueError("backbone: needed for images; pass one to SaliencyProposer or use from_features")
        if isinstance(images, Tensor) and images.ndim != 4:
            raise ValueError(
                f"images: expected [B, 3, H, W] or a sequence of [3, H, W], got {list(images.shape)}"
            )
        features = self.backbone.features(list(images))
        return self.from_features(features.maps, features.valid)

    @torch.no_grad()
    def from_features(self, features: Tensor, valid: Tensor | None = None) -> Proposals:
        """Propose masks from feature maps, on their device and without waiting for it.

        Args:
            features: [B, D, H, W].
            valid: int [B, 2], height and width in cells of the valid part of each map (the rest is padding,
                which is ignored); None: the whole map.

        Raises:
            ValueError, TypeError: wrong rank, shape or type.
        """
        if not isinstance(features, Tensor):
            raise TypeError(f"features: expected a tensor [B, D, H, W], got {type(features).__name__}")
        if features.ndim != 4:
            raise ValueError(f"features: expected [B, D, H, W], got {list(features.shape)}")
        if valid is not None and list(valid.shape) != [len(features), 2]:
            raise ValueError(f"valid: expected [{len(features)}, 2], got {list(valid.shape)}")
        options = self.options
        if options.center or options.scales is not None:
            features = _prepared(features, valid, options.center)
        index = None
        if options.scales is not None:
            seeds, index = resized_seeds(features, options.scales, _whole(features, valid))
            saliency = seed_saliency(
                features,
                seeds=seeds,
                valid=valid,
                similarity=options.similarity,
                threshold=options.threshold,
            )
        else:
            assert options.grid is not None
            saliency = seed_saliency(
                features,
                list(options.grid),
                valid=valid,
                similarity=options.similarity,
                threshold=options.threshold,
            )
        chosen, score = self._suppress(saliency.masks, saliency.score)
        proposals = _take(saliency.masks, score, saliency.seeds, chosen, index, valid)
        return self._filter(proposals)

    @torch.no_grad()
    def saliency(self, features: Tensor, proposals: Proposals) -> Tensor:
        """Compute the saliency of the proposals' seeds over their maps, before the threshold (Eq. 4).

        Args:
            features: [B, D, H, W], as given to `from_features`.
            proposals: as returned by `from_features`.

        Returns:
            fp32 [B, K, H, W] in [0, 1]; 0 in the padding and past `count`.
        """
        # Computed again, but only for the kept seeds: `seed_saliency` packs each mask as it goes, and keeping
        # the saliency of all M seeds would take 32 times the memory of their masks.
        if self.options.center:
            features = _prepared(features, proposals.valid, True)
        y, defined = normalized_saliency(features, proposals.seeds, proposals.valid, self.options.similarity)
        return torch.where(defined, y, 0).unflatten(-1, features.shape[2:])

    def _suppress(self, masks: PackedMasks, score: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of the kept masks, best first, int64 [B, K] padded with -1; and the scores of all masks."""
        options = self.options
        if options.nms == "mask":
            chosen = mask_nms(
                masks,
                score,
                iou_threshold=options.iou_threshold,
                min_area=options.min_area,
                max_masks=options.max_masks,
            )
            return chosen, score
        # Masks that are too small must not decay others: they are emptied first.
        large = masks.area() >= options.min_area
        words = torch.where(large[..., None], masks.words, 0)
        decayed = matrix_nms(
            PackedMasks(words, masks.height, masks.width),
            torch.where(large, score, 0),
            kernel=options.matrix_kernel,
            sigma=options.sigma,
        )
        return _best(torch.where(large, decayed, -torch.inf), options.max_masks), decayed

    def _filter(self, proposals: Proposals) -> Proposals:
        options = self.options
        keep = proposals.seed_index >= 0
        if options.min_score is not None:
            keep = keep & (proposals.score >= options.min_score)
        if options.min_center_height is not None or options.max_box_width is not None:
            keep = keep & geometry_filter(
                proposals.masks,
                proposals.valid,
                min_center_height=options.min_center_height,
                max_box_width=options.max_box_width,
            )
        elif options.min_score is None:
            return proposals
        place = _best(torch.where(keep, proposals.score, -torch.inf), keep.shape[1])
        kept = _take(
            proposals.masks, proposals.score, proposals.seeds, place, proposals.seed_index, proposals.valid
        )
        return kept


def _best(score: Tensor, most: int) -> Tensor:
    """Indices of the finite scores in descending order, ties by index: [B, most], padded with -1."""
    ordered, order = torch.sort(score, dim=1, descending=True, stable=True)
    order = torch.where(torch.isfinite(ordered), order, -1)[:, :most]
    return nn.functional.pad(order, (0, most - order.shape[1]), value=-1)


def _take(
    masks: PackedMasks,
    score: Tensor,
    seeds: Tensor,
    chosen: Tensor,
    index: Tensor | None,
    valid: Tensor | None,
) -> Proposals:
    """Take the rows `chosen`, int64 [B, K], -1 for none; `index` [B, M]: seed index of each row, if given."""
    taken = take_proposals(masks, score, seeds, chosen)
    seed_index = chosen
    if index is not None and index.shape[1]:
        seed_index = torch.where(chosen >= 0, index.gather(1, chosen.clamp(min=0)), -1)
    return Proposals(
        masks=taken.masks,
        score=taken.score,
        seeds=taken.seeds,
        seed_index=seed_index,
        count=taken.count,
        valid=valid,
    )


def _whole(features: Tensor, valid: Tensor | None) -> Tensor:
    """`valid`, or the size of the whole maps if it is None: int64 [B, 2]."""
    if valid is not None:
        return valid.long()
    return whole_maps(len(features), features.shape[2], features.shape[3], features.device)


def _prepared(features: Tensor, valid: Tensor | None, center: bool) -> Tensor:
    """Zero the features beyond the valid part and, with `center`, subtract the mean over that part."""
    size = _whole(features, valid)
    rows = torch.arange(features.shape[2], device=features.device)
    columns = torch.arange(features.shape[3], device=features.device)
    inside = (rows < size[:, :1])[:, None, :, None] & (columns < size[:, 1:])[
        :, None, None, :
    ]  # [B, 1, H, W]
    features = torch.where(inside, features, 0)
    if center:
        cells = size.prod(1).reshape(-1, 1, 1, 1)
        mean = features.sum((2, 3), keepdim=True, dtype=torch.float32) / cells
        features = torch.where(inside, features - mean.to(features.dtype), 0)
    return features
