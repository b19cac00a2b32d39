"""The masks that look most like objects, among the candidates of one image at several sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sp_fast.ops import PackedMasks, mask_nms
from sp_fast.proposals.candidates import find_candidates
from sp_fast.proposals.extents import inside, prepared
from sp_fast.proposals.objectness import colour_contrast, objectness
from sp_fast.proposals.presets import ProposalOptions
from sp_fast.proposals.pyramid import to_grid
from sp_fast.proposals.selection import Proposals, select


def best_objects(
    levels: Sequence[tuple[Tensor, Tensor]], options: ProposalOptions, colours: Tensor | None = None
) -> Proposals:
    """Rank the candidates of all levels by `objectness` on the grid of the finest, and keep the best.

    Args:
        levels: feature maps of the same images at several sizes, [B, D, h, w] each, with the height and width
            in cells of their valid parts, int64 [B, 2].
        options: options of the proposer.
        colours: fp32 [B, 3, H, W] in 0..1 on the grid of the finest level; None: left out of the ranking.
    """
    finest, target = max(levels, key=lambda level: level[0].shape[2] * level[0].shape[3])
    number = sum(rows * columns for rows, columns in options.grid or ())
    found = [
        _scored(maps, valid, finest, target, options, colours, number * place)
        for place, (maps, valid) in enumerate(levels)
    ]
    score, seeds, index, threshold, saliency = (
        torch.cat([getattr(one, name) for one in found], dim=1)
        for name in ("score", "seeds", "seed_index", "threshold", "saliency")
    )
    words = torch.cat([one.masks.words for one in found], dim=1)
    masks = PackedMasks(words, finest.shape[2], finest.shape[3])
    chosen = mask_nms(
        masks,
        score,
        iou_threshold=options.iou_threshold,
        min_area=options.min_area,
        max_masks=options.max_masks,
    )
    return select(Proposals(masks, score, seeds, index, found[0].count, target, threshold, saliency), chosen)


def _scored(
    maps: Tensor,
    valid: Tensor,
    finest: Tensor,
    target: Tensor,
    options: ProposalOptions,
    colours: Tensor | None,
    offset: int,
) -> Proposals:
    """All candidates of one level on the grid of the finest, in no particular order."""
    one = find_candidates(prepared(maps, valid, options.center).float(), valid, options)
    saliency = to_grid(one.saliency, valid, (finest.shape[2], finest.shape[3]), target)
    threshold = one.threshold.expand(len(maps), -1)
    masks = saliency >= threshold[..., None, None]
    colour = None if colours is None else colour_contrast(colours, masks, inside(finest, target))
    score = objectness(one.stability, one.contrast, colour, one.threshold)
    index = torch.where(one.seed_index >= 0, one.seed_index + offset, -1)
    count = (index >= 0).sum(1)
    return Proposals(PackedMasks.pack(masks), score, one.vectors, index, count, target, threshold, saliency)
