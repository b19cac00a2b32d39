"""The masks that look most like objects, among the candidates of one image at several sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from sp_fast.ops import PackedMasks, mask_nms
from sp_fast.proposals.candidates import Candidates, find_candidates
from sp_fast.proposals.extents import inside, prepared
from sp_fast.proposals.objectness import border_share, colour_contrast, objectness
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
    levels = [(prepared(maps, valid, options.center).float(), valid) for maps, valid in levels]
    finest, target = max(levels, key=lambda level: level[0].shape[2] * level[0].shape[3])
    size, real = (finest.shape[2], finest.shape[3]), inside(finest, target)
    seeds = sum(rows * columns for rows, columns in options.grid or ())
    found: list[Candidates] = []
    words, colour, indices = [], [], []
    for number, (maps, valid) in enumerate(levels):
        of_level = [find_candidates(maps, valid, threshold, options) for threshold in options.thresholds]
        for one in of_level:
            saliency = to_grid(one.saliency(maps, valid, options.similarity), valid, size, target)
            masks = saliency >= one.threshold[..., None, None]
            words.append(PackedMasks.pack(masks).words)
            if colours is not None:
                colour.append(colour_contrast(colours, masks, real))
            indices.append(torch.where(one.seed_index >= 0, one.seed_index + number * seeds, -1))
        found.append(Candidates.join(of_level))
    packed = PackedMasks(torch.cat(words, dim=1), *size)
    threshold = torch.cat([one.threshold for one in found], dim=1)
    score = objectness(
        torch.cat([one.stability for one in found], dim=1),
        torch.cat([one.contrast for one in found], dim=1),
        torch.cat(colour, dim=1) if colour else None,
        border_share(packed, real),
        threshold,
    )
    rows = Proposals(
        masks=packed,
        score=score,
        seeds=torch.cat([one.vectors for one in found], dim=1),
        seed_index=torch.cat(indices, dim=1),
        count=target[:, 0],
        valid=target,
        threshold=threshold,
    )
    chosen = mask_nms(
        rows.masks,
        rows.score,
        iou_threshold=options.iou_threshold,
        min_area=options.min_area,
        max_masks=options.max_masks,
    )
    # Computed again for the few that are kept: the saliency of all candidates takes gigabytes on large maps.
    saliency = torch.zeros(*chosen.shape, *size, device=chosen.device)
    first = 0
    for one, (maps, valid) in zip(found, levels, strict=True):
        place = chosen - first
        here = (place >= 0) & (place < one.seed_index.shape[1])
        own = one.take(torch.where(here, place, -1)).saliency(maps, valid, options.similarity)
        saliency = torch.where(here[..., None, None], to_grid(own, valid, size, target), saliency)
        first += one.seed_index.shape[1]
    return dataclasses.replace(select(rows, chosen), saliency=saliency)
