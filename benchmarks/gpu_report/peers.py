"""What other libraries offer for the same work."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def as_roi_align(features: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Features and boxes [B, L, 4] as torchvision takes them; in fp16, for it has no bf16."""
    image = torch.arange(len(boxes), device=boxes.device).repeat_interleave(boxes.shape[1])
    return features.half(), torch.cat([image[:, None], boxes.flatten(0, 1)], 1).half()


def roi_align(features: Tensor, rows: Tensor) -> Tensor:
    """One bin a box, sampled once a cell: [B L, C]."""
    from torchvision.ops import roi_align

    return roi_align(features, rows, 1, sampling_ratio=-1, aligned=True).flatten(1)


def mmdet_matrix_nms(masks: Tensor, score: Tensor) -> list[Tensor]:
    """Matrix NMS of mmdet, which takes an image at a time."""
    import sp_fast.models  # noqa: F401  (gives mmdet the compiled ops it imports, where mmcv is not built)

    # isort: split
    from mmdet.models.layers import mask_matrix_nms

    labels = torch.zeros(score.shape[1], dtype=torch.int64, device=score.device)
    return [mask_matrix_nms(m, labels, s)[0] for m, s in zip(masks, score, strict=True)]


def free_masks(
    features: Tensor, grid: tuple[int, int], threshold: float = 0.5, keep: int = 20
) -> list[Tensor]:
    """Masks of an image at a time, in the manner of FreeSOLO's free masks.

    Queries are pooled from the features; the cosine with every cell is scaled to [0, 1] and thresholded;
    small masks go; the rest are sorted by their mean inside the mask and thinned by matrix NMS.
    """
    from torchvision.ops import masks_to_boxes

    found = []
    for image in features:
        cells = F.normalize(image.flatten(1), dim=0)
        queries = F.adaptive_avg_pool2d(image[None], grid)[0].flatten(1)
        y = F.normalize(queries, dim=0).T @ cells
        low, high = y.amin(1, keepdim=True), y.amax(1, keepdim=True)
        y = ((y - low) / (high - low)).float()
        masks = y >= threshold
        area = masks.sum(1)
        large = area >= 2
        y, masks, area = y[large], masks[large], area[large]
        score, order = ((y * masks).sum(1) / area).sort(descending=True)
        ranked, area = masks[order].float(), area[order]
        shared = ranked @ ranked.T
        iou = (shared / (area[:, None] + area - shared)).triu(1)
        most = iou.amax(0)[:, None]
        score = score * torch.exp(-2 * (iou.square() - most.square())).amin(0)
        best = score.topk(min(keep, len(score)))[1]
        found.append(masks_to_boxes(masks[order][best].view(-1, *image.shape[1:])))
    return found
