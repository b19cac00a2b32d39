"""Saliency mask proposals from features or images (Eq. 3-4 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sp_fast.ops import PackedMasks, mask_nms, matrix_nms, seed_saliency
from sp_fast.proposals.backbones import Backbone
from sp_fast.proposals.extents import Size, prepared, whole_maps
from sp_fast.proposals.filters import geometry_filter
from sp_fast.proposals.multiscale import best_objects
from sp_fast.proposals.presets import resolve_options
from sp_fast.proposals.pyramid import cell_colours, resized
from sp_fast.proposals.seeds import resized_seeds, saliency_maps
from sp_fast.proposals.selection import Proposals, best, select


class SaliencyProposer(nn.Module):
    """Proposes masks of salient objects, without labels or training.

    Seeds S are average-pooled from features X (or resized); the saliency of a seed is its similarity with
    every cell, scaled linearly to [0, 1]; its mask is where the saliency is at least `threshold`, and its
    score is the mean saliency inside. Non-maximum suppression and filters keep the best masks.

    Args:
        backbone: from `build_backbone`; needed for images, not for features.
        preset: "paper", "official" or "multiscale".
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
        return self.with_saliency(images)[0]

    @torch.no_grad()
    def with_saliency(self, images: Tensor | Sequence[Tensor]) -> tuple[Proposals, Tensor, list[Size]]:
        """Propose masks for images; also return `saliency` and the valid size of each map, on the host.

        See `from_images`.
        """
        if self.backbone is None:
            raise ValueError("backbone: needed for images; pass one to SaliencyProposer or use from_features")
        if isinstance(images, Tensor) and images.ndim != 4:
            raise ValueError(
                f"images: expected [B, 3, H, W] or a sequence of [3, H, W], got {list(images.shape)}"
            )
        images = list(images)
        if self.options.ranking == "saliency":
            features = self.backbone.features(self._at_sizes(images)[0])
            proposals = self.from_features(features.maps, features.valid)
            return proposals, self.saliency(features.maps, proposals), features.sizes
        levels = [self.backbone.features(level) for level in self._at_sizes(images)]
        finest = max(levels, key=lambda level: level.maps[0, 0].numel())
        colours = cell_colours(images, finest.sizes)
        found = best_objects([(level.maps, level.valid) for level in levels], self.options, colours)
        proposals = self._filter(found)
        assert proposals.saliency is not None
        return proposals, proposals.saliency, finest.sizes

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
        options, seeds, index = self.options, None, None
        if options.ranking == "objectness":
            whole = whole_maps(features) if valid is None else valid.long()
            return self._filter(best_objects([(features, whole)], options))
        if options.center or options.scales is not None:
            features = prepared(features, valid, options.center)
        if options.scales is not None:
            whole = whole_maps(features) if valid is None else valid.long()
            seeds, index = resized_seeds(features, options.scales, whole)
        masks, score, seeds = seed_saliency(
            features,
            options.grid,
            seeds=seeds,
            valid=valid,
            similarity=options.similarity,
            threshold=options.thresholds[0],
        )
        chosen, score = self._suppress(masks, score)
        if index is None:
            index = torch.arange(score.shape[1], device=score.device).expand_as(score)
        threshold = torch.full_like(score, options.thresholds[0])
        found = Proposals(masks, score, seeds, index, index.new_zeros(len(index)), valid, threshold)
        return self._filter(select(found, chosen))

    @torch.no_grad()
    def saliency(self, features: Tensor, proposals: Proposals) -> Tensor:
        """Compute the saliency of the proposals' seeds over their maps, before the threshold (Eq. 4).

        Args:
            features: [B, D, H, W], as given to `from_features`.
            proposals: as returned by `from_features`.

        Returns:
            fp32 [B, K, H, W] in [0, 1]; 0 in the padding and past `count`.
        """
        if proposals.saliency is not None:
            return proposals.saliency
        # Computed again, but only for the kept seeds: `seed_saliency` packs each mask as it goes, and keeping
        # the saliency of all M seeds would take 32 times the memory of their masks.
        if self.options.center:
            features = prepared(features, proposals.valid, True)
        return saliency_maps(features, proposals.seeds, proposals.valid, self.options.similarity)

    def _at_sizes(self, images: list[Tensor]) -> list[list[Tensor]]:
        """The images at each of `sizes`, or as they are."""
        sizes = self.options.sizes
        return [images] if sizes is None else [[resized(one, side, side) for one in images] for side in sizes]

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
        return best(torch.where(large, decayed, -torch.inf), options.max_masks), decayed

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
        place = best(torch.where(keep, proposals.score, -torch.inf), keep.shape[1])
        return select(proposals, place)
