"""Every op in plain PyTorch: the reference that the compiled ops are tested against.

Arguments must already be checked. Only connected_parts, which repeats a step until nothing changes,
synchronises the host with a GPU: integer inputs (valid, count, index) are clamped to their range, and results
are padded to a fixed size. Accumulation is in fp32, or in fp64 for fp64 inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sp_fast.ops.packed_masks import PackedMasks
from sp_fast.ops.packing import mask_areas, pack_masks, unpack_masks

# Smallest norm a vector is divided by, as in torch.nn.functional.cosine_similarity.
COSINE_EPS = 1e-8


class SeedSaliency(NamedTuple):
    """Result of `seed_saliency`: masks [B, M], score fp32 [B, M], seeds [B, M, D]."""

    masks: PackedMasks
    score: Tensor
    seeds: Tensor


def accumulate(x: Tensor) -> Tensor:
    """Convert to the dtype of accumulation: fp64 for fp64, else fp32."""
    return x if x.dtype == torch.float64 else x.float()


def _unit(x: Tensor, dim: int = -1) -> Tensor:
    return F.normalize(accumulate(x), dim=dim, eps=COSINE_EPS)


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Divide in fp64, 0 where whole is 0."""
    return part.double() / whole.clamp(min=1).double()


def _valid_size(valid: Tensor | None, features: Tensor) -> tuple[Tensor, Tensor]:
    """Height and width of the part of each map without padding, int64 [B] each."""
    batch, _, height, width = features.shape
    if valid is None:
        full = torch.ones(batch, dtype=torch.int64, device=features.device)
        return full * height, full * width
    valid = valid.long()
    return valid[:, 0].clamp(1, height), valid[:, 1].clamp(1, width)


def _window_means(x: Tensor, size: Tensor, windows: int) -> Tensor:
    """Means of the adaptive-pooling windows of the first `size` entries, [B, ..., n] -> [B, ..., windows]."""
    position = torch.arange(x.shape[-1], device=x.device)
    means = []
    for i in range(windows):
        start = (i * size) // windows
        stop = ((i + 1) * size + windows - 1) // windows
        inside = (position >= start[:, None]) & (position < stop[:, None])  # [B, n]
        inside = inside.reshape(inside.shape[0], *[1] * (x.dim() - 2), inside.shape[1])
        length = (stop - start).reshape(-1, *[1] * (x.dim() - 2))
        means.append(torch.where(inside, x, 0).sum(-1) / length)
    return torch.stack(means, dim=-1)


def pool_seeds(features: Tensor, grids: Sequence[tuple[int, int]], valid: Tensor | None = None) -> Tensor:
    """Adaptive average pooling of the valid part of each map to each grid: [B, M, D]."""
    height, width = _valid_size(valid, features)
    seeds = []
    for rows, columns in grids:
        by_column = _window_means(features.float(), width, columns)  # [B, D, H, W']
        by_cell = _window_means(by_column.transpose(-1, -2), height, rows)  # [B, D, W', H']
        seeds.append(by_cell.transpose(-1, -2).flatten(2))
    return torch.cat(seeds, dim=2).to(features.dtype).transpose(1, 2)


def normalized_saliency(
    features: Tensor, seeds: Tensor, valid: Tensor | None, similarity: str
) -> tuple[Tensor, Tensor]:
    """Eq. 4: similarity of seeds [B, M, D] with every cell, scaled linearly to [0, 1] over the valid cells.

    Returns the saliency, fp32 [B, M, HW], and where it is defined, bool [B, M, HW].
    """
    height, width = _valid_size(valid, features)
    rows = torch.arange(features.shape[2], device=features.device)
    columns = torch.arange(features.shape[3], device=features.device)
    inside = (rows < height[:, None])[:, :, None] & (columns < width[:, None])[:, None, :]  # [B, H, W]
    cells = torch.where(inside[:, None], features.float(), 0).flatten(2)  # [B, D, HW]
    inside = inside.flatten(1)[:, None]  # [B, 1, HW]
    vectors = seeds.float()
    if similarity == "cosine":
        cells, vectors = _unit(cells, dim=1), _unit(vectors)
    with torch.autocast(features.device.type, enabled=False):  # 16-bit products would change masks
        y = vectors @ cells  # [B, M, HW]
    low = torch.where(inside, y, torch.inf).amin(-1, keepdim=True)
    high = torch.where(inside, y, -torch.inf).amax(-1, keepdim=True)
    span = high - low
    usable = torch.isfinite(span) & (span > 0)  # the span is not finite if any y is not
    return (y - low) / torch.where(usable, span, 1), inside & usable


def saliency_of_seeds(
    features: Tensor, seeds: Tensor, valid: Tensor | None, similarity: str, threshold: float
) -> tuple[PackedMasks, Tensor]:
    """Masks [B, M] and scores [B, M] of given seeds [B, M, D]."""
    y, defined = normalized_saliency(features, seeds, valid, similarity)
    mask = defined & (y >= threshold)
    score = torch.where(mask, y, 0).sum(-1) / mask.sum(-1).clamp(min=1)
    words = pack_masks(mask.unflatten(-1, features.shape[2:]))
    return PackedMasks(words, *features.shape[2:]), score


def seed_saliency(
    features: Tensor,
    grid: Sequence[tuple[int, int]] | None = None,
    *,
    seeds: Tensor | None = None,
    valid: Tensor | None = None,
    similarity: str = "dot",
    threshold: float = 0.5,
) -> SeedSaliency:
    """Eq. 3-4: saliency of seeds, scaled linearly to [0, 1] and thresholded."""
    if seeds is None:
        assert grid is not None
        seeds = pool_seeds(features, grid, valid)
    masks, score = saliency_of_seeds(features, seeds, valid, similarity, threshold)
    return SeedSaliency(masks, score, seeds)


def row_masks(words: Tensor) -> PackedMasks:
    """Masks of a single row from their words: overlaps do not depend on the shape of a mask."""
    return PackedMasks(words, 1, 32 * words.shape[-1])


def _pool_labels(label: Tensor, connectivity: int) -> Tensor:
    """Largest label of each cell of maps [N, H, W] and its neighbours."""
    label = label.double()  # exact, and pooled on any device
    if connectivity == 8:
        return F.max_pool2d(label, 3, 1, 1).long()
    in_row, in_column = F.max_pool2d(label, (1, 3), 1, (0, 1)), F.max_pool2d(label, (3, 1), 1, (1, 0))
    return torch.maximum(in_row, in_column).long()


def _label_parts(cells: Tensor, connectivity: int) -> Tensor:
    """One plus the first cell of the part that each cell of masks [N, H, W] is in, 0 outside: [N, H * W]."""
    size, number = cells.shape[1:], cells[0].numel()
    # From the last cell to the first, so that the largest label wins; entry 0 stands for the cells outside.
    inside = F.pad(cells.flatten(1).flip(1), (1, 0))
    label = torch.where(inside, torch.arange(number + 1, device=cells.device), 0)
    before = torch.zeros_like(label)
    while not torch.equal(label, before):
        before = label
        pooled = _pool_labels(label[:, 1:].unflatten(1, size), connectivity).flatten(1)
        pooled = torch.where(inside, F.pad(pooled, (1, 0)), 0)
        # The cell that a label names, which is in the same part, gets the pooled label too, and passes it on.
        label = pooled.scatter_reduce(1, label, pooled, "amax")
        label = label.gather(1, label)
    return torch.where(inside, number + 1 - label, 0)[:, 1:].flip(1)


def connected_parts(
    masks: PackedMasks, *, max_parts: int = 8, min_area: int = 1, connectivity: int = 8
) -> tuple[PackedMasks, Tensor]:
    """The largest connected parts of each mask, [..., max_parts], and their number, int64 [...]."""
    height, width = masks.height, masks.width
    cells = unpack_masks(masks.words, height, width).reshape(masks.shape.numel(), height, width)
    parts = cells.new_zeros(cells.shape[0], max_parts, height, width)
    count = torch.zeros(cells.shape[0], dtype=torch.int64, device=cells.device)
    if cells.numel():
        label = _label_parts(cells, connectivity)
        area = count.new_zeros(cells.shape[0], height * width + 1)
        area.scatter_add_(1, label, cells.flatten(1).long())
        area[area < max(min_area, 1)] = 0
        area, order = area.sort(dim=1, descending=True, stable=True)
        real = area[:, :max_parts] > 0
        count = real.sum(1)
        same = (label[:, None] == order[:, :max_parts, None]) & real[..., None]
        parts[:, : real.shape[1]] = same.unflatten(2, (height, width))
    words = pack_masks(parts)
    leading = masks.shape
    return PackedMasks(words.view(*leading, *words.shape[1:]), height, width), count.view(leading)


def _overlap(masks: PackedMasks) -> tuple[Tensor, Tensor]:
    """Intersection and union in cells of all pairs, [B, M] -> fp64 [B, M, M] each."""
    cells = unpack_masks(masks.words, masks.height, masks.width).flatten(2).double()
    intersection = cells @ cells.transpose(1, 2)
    area = cells.sum(-1)
    return intersection, area[:, :, None] + area[:, None, :] - intersection


def _best_first(score: Tensor) -> Tensor:
    """Order by descending score, equal scores by ascending index, NaN last: int64 [B, M]."""
    order = torch.sort(
        score.float().nan_to_num(-torch.inf, torch.inf, -torch.inf), stable=True, descending=True
    )[1]
    last = torch.isnan(score).gather(1, order).to(torch.int8)
    return order.gather(1, torch.sort(last, stable=True)[1])


def mask_nms(
    masks: PackedMasks, score: Tensor, *, iou_threshold: float = 0.5, min_area: int = 2, max_masks: int = 20
) -> Tensor:
    """Greedy non-maximum suppression of masks: indices of the kept ones, int64 [B, max_masks]."""
    batch, count = score.shape
    order = _best_first(score)
    eligible = (mask_areas(masks.words) >= min_area) & ~torch.isnan(score)
    overlap = _ratio(*_overlap(masks)) > iou_threshold  # [B, M, M]
    kept = torch.zeros_like(eligible)
    for rank in range(count):
        candidate = order[:, rank, None]  # [B, 1]
        overlapped = (overlap.gather(1, candidate[:, :, None].expand(-1, -1, count))[:, 0] & kept).any(-1)
        keep = eligible.gather(1, candidate) & ~overlapped[:, None]
        kept = kept.scatter(1, candidate, keep)
    kept_in_order = kept.gather(1, order)
    slot = kept_in_order.cumsum(1) - 1
    slot = torch.where(kept_in_order & (slot < max_masks), slot, max_masks)  # the last slot is dropped
    result = torch.full((batch, max_masks + 1), -1, dtype=torch.int64, device=score.device)
    return result.scatter(1, slot, order)[:, :max_masks]


def take_proposals(
    words: Tensor, score: Tensor, seeds: Tensor, chosen: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Rows `chosen` [B, K] of three tables [B, M, ...], zeros for an index out of range, and their number."""
    number = score.shape[1]
    real = (chosen >= 0) & (chosen < number)
    row = torch.where(real, chosen, number)  # the row of zeros that is appended below

    def rows(table: Tensor) -> Tensor:
        table = torch.cat([table, table.new_zeros(table.shape[0], 1, table.shape[2])], 1)
        return table.gather(1, row[..., None].expand(-1, -1, table.shape[2]))

    return rows(words), rows(score[..., None])[..., 0], rows(seeds), real.sum(1)


def matrix_nms(masks: PackedMasks, score: Tensor, *, kernel: str = "gaussian", sigma: float = 2.0) -> Tensor:
    """SOLOv2's matrix NMS: decayed scores, fp32 [B, M]."""
    count = score.shape[1]
    if count == 0:
        return score.float()
    order = _best_first(score)
    iou = _ratio(*_overlap(masks)).float()
    iou = iou.gather(1, order[:, :, None].expand_as(iou)).gather(2, order[:, None, :].expand_as(iou))
    iou = iou.triu(1)  # [B, i, j]: mask i is before mask j
    usable = ~torch.isnan(score).gather(1, order)
    iou = iou * usable[:, :, None]
    most = iou.amax(1)[:, :, None]  # largest IoU of mask i with an earlier one
    if kernel == "gaussian":
        decay = torch.exp(-sigma * (iou.square() - most.square()))
    else:
        # A duplicate (most == 1) adds no decay to that of the mask it repeats.
        decay = torch.where(most < 1, (1 - iou) / (1 - most), torch.inf)
    before = torch.ones_like(iou, dtype=torch.bool).triu(1)
    factor = torch.where(before, decay, 1).amin(1).clamp(max=1)
    return score.float() * torch.empty_like(factor).scatter_(1, order, factor)


def box_cells(boxes: Tensor, height: int, width: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Half-open cell ranges x0 y0 x1 y1 of boxes in cells, int64 [...] each; NaN counts as 0."""
    x0, y0, x1, y1 = torch.nan_to_num(boxes.double(), nan=0.0).unbind(-1)
    x0 = x0.floor().clamp(0, width - 1)
    y0 = y0.floor().clamp(0, height - 1)
    x1 = torch.maximum(x1.ceil().clamp(max=width), x0 + 1)
    y1 = torch.maximum(y1.ceil().clamp(max=height), y0 + 1)
    return x0.long(), y0.long(), x1.long(), y1.long()


def first_rows(count: Tensor | None, batch: int, rows: int, device: torch.device) -> Tensor:
    """Whether each row is one of the first `count` of its image, bool [B, rows]."""
    if count is None:
        return torch.ones(batch, rows, dtype=torch.bool, device=device)
    return torch.arange(rows, device=device) < count[:, None]


def cells_in_boxes(boxes: Tensor, count: Tensor | None, height: int, width: int) -> Tensor:
    """The cells inside each of the first `count` boxes, bool [B, L, H, W]."""
    x0, y0, x1, y1 = (side[..., None] for side in box_cells(boxes, height, width))
    rows, columns = (torch.arange(size, device=boxes.device) for size in (height, width))
    real = first_rows(count, boxes.shape[0], boxes.shape[1], boxes.device)[..., None, None]
    return real & ((rows >= y0) & (rows < y1))[..., None] & ((columns >= x0) & (columns < x1))[..., None, :]


def roi_average_pool(features: Tensor, boxes: Tensor, count: Tensor | None = None) -> Tensor:
    """Eq. 5: average of the features inside each box, [B, L, C]."""
    x = accumulate(features)
    pooled = [x[:, :, 0, :0].transpose(1, 2)]  # no box: [B, 0, C]
    for inside in cells_in_boxes(boxes, count, *features.shape[2:]).unbind(1):
        area = inside.sum((1, 2)).clamp(min=1)
        pooled.append((torch.where(inside[:, None], x, 0).sum((-2, -1)) / area[:, None])[:, None])
    return torch.cat(pooled, dim=1).to(features.dtype)


def match_prompts(kernels: Tensor, prompts: Tensor, count: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Eq. 6-8: every kernel adds the prompt with the largest cosine similarity to itself."""
    batch, number, channels = prompts.shape
    if kernels.dim() == 2:
        kernels = kernels.expand(batch, -1, -1)
    if number == 0:
        index = torch.full(kernels.shape[:2], -1, dtype=torch.int64, device=kernels.device)
        return kernels + 0, index
    with torch.no_grad():
        # A sum, not a matrix product, so that equal prompts have bit-equal cosines.
        cosine = (_unit(kernels)[:, :, None] * _unit(prompts)[:, None]).sum(-1)  # [B, N, L]
        real = first_rows(count, batch, number, prompts.device)[:, None]
        usable = real & ~torch.isnan(cosine)
        index = torch.where(usable, cosine, -torch.inf).argmax(-1)
        index = torch.where(usable.any(-1), index, -1)
    chosen = prompts.gather(1, index.clamp(min=0)[:, :, None].expand(-1, -1, channels))
    return kernels + torch.where((index >= 0)[:, :, None], chosen, 0), index


class MatchedPairs(NamedTuple):
    """Pairs of kernel and target [S, B, L, C], zero where not `matched` [S, B, L], and the kernels' rows."""

    kernel: Tensor
    target: Tensor
    matched: Tensor
    row: Tensor


def matched_pairs(kernels: Tensor, targets: Tensor, index: Tensor) -> MatchedPairs:
    """Gather the kernel of each target."""
    stages, _, number, channels = kernels.shape
    index = index.long().clamp(-1, number - 1)
    matched = index >= 0
    row = index.clamp(min=0)[..., None].expand(-1, -1, -1, channels)
    # Unmatched entries are zeroed before the arithmetic, so that their NaNs reach no gradient.
    kernel = torch.where(matched[..., None], kernels.gather(2, row), 0)
    target = torch.where(matched[..., None], targets.expand(stages, -1, -1, -1), 0)
    return MatchedPairs(accumulate(kernel), accumulate(target), matched, row)


def kernel_supervision_loss(
    kernels: Tensor, targets: Tensor, index: Tensor, *, reduction: str = "mean"
) -> Tensor:
    """Eq. 9: one minus the cosine of each target and its matched kernel, summed or averaged to a scalar."""
    if kernels.shape[2] == 0 or index.numel() == 0:
        return accumulate(kernels).flatten()[:0].sum() + accumulate(targets).flatten()[:0].sum()
    kernel, target, matched, _ = matched_pairs(kernels, targets, index)
    loss = torch.where(matched, 1 - (_unit(kernel) * _unit(target)).sum(-1), 0)  # [S, B, L]
    per_stage = loss.sum((1, 2))
    if reduction == "mean":
        per_stage = per_stage / matched.sum((1, 2)).clamp(min=1)
    return per_stage.sum()
