"""The ops as one would write them in PyTorch: the baseline on the CPU and on a GPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def seed_saliency(
    features: Tensor, grid: tuple[int, int], threshold: float = 0.5
) -> tuple[Tensor, Tensor, Tensor]:
    """Masks [B, M, H, W], scores and seeds, by adaptive pooling and a matrix product."""
    seeds = F.adaptive_avg_pool2d(features, grid).flatten(2).transpose(1, 2)
    y = seeds @ features.flatten(2)
    low, high = y.amin(-1, keepdim=True), y.amax(-1, keepdim=True)
    y = (y - low) / (high - low)
    masks = y >= threshold
    score = (y * masks).sum(-1) / masks.sum(-1)
    return masks.view(*masks.shape[:2], *features.shape[2:]), score, seeds


def overlaps(cells: Tensor) -> tuple[Tensor, Tensor]:
    """IoU [B, M, M] and areas of masks [B, M, cells], by a matrix product."""
    area = cells.sum(-1)
    intersection = cells @ cells.transpose(1, 2)
    return intersection / (area[:, :, None] + area[:, None, :] - intersection).clamp(min=1), area


def mask_nms(
    masks: Tensor, score: Tensor, iou_threshold: float = 0.5, min_area: int = 2, max_masks: int = 20
) -> Tensor:
    """Indices of the kept masks, by a matrix of all IoUs and a Python loop."""
    iou, area = overlaps(masks.flatten(2).float())
    result = torch.full((len(masks), max_masks), -1)
    for image in range(len(masks)):
        gone = area[image] < min_area
        kept: list[int] = []
        for m in score[image].argsort(descending=True, stable=True).tolist():
            if len(kept) == max_masks:
                break
            if not gone[m]:
                kept.append(m)
                gone |= iou[image, m] > iou_threshold
        result[image, : len(kept)] = torch.tensor(kept, dtype=torch.int64)
    return result


def matrix_nms(masks: Tensor, score: Tensor, sigma: float = 2.0) -> Tensor:
    """Decayed scores by SOLOv2's formula."""
    ranked, order = score.sort(descending=True, stable=True)
    cells = masks.flatten(2).float()
    iou = overlaps(cells.gather(1, order[:, :, None].expand_as(cells)))[0].triu(1)
    most = iou.amax(1)[:, :, None]
    decay = (torch.exp(-sigma * iou.square()) / torch.exp(-sigma * most.square())).amin(1)
    return torch.empty_like(score).scatter_(1, order, ranked * decay)


def proposals(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Saliency, then mask NMS."""
    masks, score, _ = seed_saliency(features, grid)
    return mask_nms(masks, score)


def roi_average_pool(features: Tensor, boxes: Tensor) -> Tensor:
    """RoIAlign of torchvision to 1 x 1, with exact sampling; it is equal where boxes cover whole cells."""
    from torchvision.ops import roi_align

    pooled = roi_align(features, list(boxes), 1, sampling_ratio=-1, aligned=True)
    return pooled.view(*boxes.shape[:2], features.shape[1])


def deformable_attention(value: Tensor, locations: Tensor, weights: Tensor, sizes: Tensor) -> Tensor:
    """Deformable attention as mmcv has it in PyTorch: the samples of all levels, then their weighted sum.

    In fp32: bf16 locations would move points by a tenth of a cell and more.
    """
    batch, _, heads, depth = value.shape
    sides = sizes.tolist()
    maps = value.float().flatten(2).split([height * width for height, width in sides], 1)
    grids = (2 * locations - 1).transpose(1, 2).flatten(0, 1)
    samples = [
        F.grid_sample(
            one.transpose(1, 2).reshape(batch * heads, depth, *side), grids[:, :, level], align_corners=False
        )
        for level, (one, side) in enumerate(zip(maps, sides, strict=True))
    ]
    share = weights.transpose(1, 2).flatten(3).flatten(0, 1)[:, None]
    total = (torch.stack(samples, -2).flatten(-2) * share).sum(-1)
    return total.view(batch, heads * depth, -1).transpose(1, 2).to(value.dtype).contiguous()


def match_prompts(kernels: Tensor, prompts: Tensor, count: Tensor) -> Any:
    """Decorated kernels, and the index of the prompt added to each."""
    cosine = F.normalize(kernels, dim=-1) @ F.normalize(prompts, dim=-1).transpose(1, 2)  # [B, N, L]
    padding = torch.arange(prompts.shape[1], device=prompts.device) >= count[:, None]
    index = cosine.masked_fill(padding[:, None], -torch.inf).argmax(-1)
    chosen = prompts.gather(1, index[:, :, None].expand(-1, -1, prompts.shape[2]))
    return kernels + chosen, index


def kernel_supervision_loss(kernels: Tensor, targets: Tensor, index: Tensor) -> Tensor:
    """One minus the cosine, averaged over the pairs of a stage, summed over stages."""
    matched = index >= 0
    chosen = kernels.gather(2, index.clamp(min=0)[..., None].expand(-1, -1, -1, kernels.shape[3]))
    loss = (1 - F.cosine_similarity(chosen, targets[None], dim=-1)) * matched
    return (loss.sum((1, 2)) / matched.sum((1, 2)).clamp(min=1)).sum()
