"""Turns the outputs of the last stage into instances at image size."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData
from torch import Tensor

from sp_fast.knet.masks import upsample

_PIXELS_AT_ONCE = 2**25  # of masks while they are resized


def kernel_quality(cls_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Computes a factor for the scores of each kernel: small for uncertain masks and for repeated ones.

        quality = (sum p^2 / sum p)^2 (1 - largest IoU with the mask of a better kernel)

    p are the mask's probabilities and IoU that of soft masks, <p, q> / (<p, p> + <q, q> - <p, q>), so that
    rounding changes little, where a threshold would move whole cells. Better means a higher product of the
    first factor and the best class score. An empty mask has 0.

    Args:
        cls_logits: class logits `[B, N, K]`.
        mask_logits: mask logits `[B, N, h, w]` at stride 8.

    Returns:
        fp32 `[B, N]` in [0, 1].
    """
    p = upsample(mask_logits.float()).sigmoid().flatten(2)  # [B, N, HW]
    overlap = p @ p.transpose(1, 2)  # [B, N, N]
    energy = overlap.diagonal(dim1=1, dim2=2)
    certain = (energy / p.sum(2)).square() * (p.amax(2) > 0.5)
    score = certain * cls_logits.float().sigmoid().amax(2)
    iou = overlap / (energy[:, :, None] + energy[:, None] - overlap)
    index = torch.arange(score.shape[1], device=score.device)
    above = score[:, None] > score[:, :, None]  # [B, i, j]: j is better than i
    equal = (score[:, None] == score[:, :, None]) & (index < index[:, None])
    return certain * (1 - (iou * (above | equal)).amax(2)).clamp(min=0)


def select_top(
    cls_logits: Tensor, limit: int, quality: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Selects the kernel-class pairs with the highest scores in each image.

    Args:
        cls_logits: class logits `[B, N, K]`.
        limit: largest number of pairs per image.
        quality: factor `[B, N]` of the scores of each kernel, or None.

    Returns:
        Scores, int64 labels and int64 kernel indices, each `[B, min(limit, N K)]`, best first.
    """
    classes = cls_logits.shape[2]
    scores = cls_logits.float().sigmoid()
    scores = (scores if quality is None else scores * quality[..., None]).flatten(1)
    scores, index = scores.topk(min(limit, scores.shape[1]), dim=1)
    return scores, index % classes, index // classes


def masks_at_image_size(
    mask_logits: Tensor, batch_shape: tuple[int, int], img_shape: tuple[int, int], out_shape: tuple[int, int]
) -> Tensor:
    """Resizes mask logits at stride 8 to mask probabilities at the size of an image.

    Steps: x2, sigmoid, bilinear to the padded input's size, crop to the image, bilinear to `out_shape`.

    Args:
        mask_logits: mask logits `[M, h, w]`.
        batch_shape: height and width of the padded input.
        img_shape: height and width of the image within it.
        out_shape: height and width of the result.

    Returns:
        Probabilities, fp32 `[M, *out_shape]`.
    """
    masks = upsample(mask_logits.float()[:, None]).sigmoid()  # [M, 1, H, W]; M may be 0
    masks = F.interpolate(masks, size=batch_shape, mode="bilinear", align_corners=False)
    masks = masks[..., : img_shape[0], : img_shape[1]]
    if tuple(out_shape) != tuple(img_shape):
        masks = F.interpolate(masks, size=out_shape, mode="bilinear", align_corners=False)
    return masks[:, 0]


def tight_boxes(masks: Tensor) -> Tensor:
    """Tight half-open xyxy boxes, fp32 `[M, 4]` in pixels, of bool masks `[M, H, W]`; zeros if empty."""

    def extent(line: Tensor) -> tuple[Tensor, Tensor]:
        length = line.shape[1]
        before_end = torch.arange(length, 0, -1, device=line.device)
        last = (line * before_end.flip(0)).amax(1)
        return (length - (line * before_end).amax(1)) * (last > 0), last

    x0, x1 = extent(masks.any(1))
    y0, y1 = extent(masks.any(2))
    return torch.stack([x0, y0, x1, y1], 1).float()


def instances(
    mask_logits: Tensor,
    scores: Tensor,
    labels: Tensor,
    kernels: Tensor,
    meta: dict[str, Any],
    batch_shape: tuple[int, int],
    mask_thr: float,
    rescale: bool,
) -> InstanceData:
    """Makes the instances of one image. The mask of a kernel selected for several classes is resized once.

    Args:
        mask_logits: mask logits `[N, h, w]` at stride 8.
        scores: score of each instance, `[M]`.
        labels: class of each instance, int64 `[M]`.
        kernels: kernel of each instance, int64 `[M]`, a row of `mask_logits`.
        meta: meta information with `img_shape` and, to rescale, `ori_shape`.
        batch_shape: height and width of the padded input.
        mask_thr: probability above which a pixel is inside a mask.
        rescale: whether masks are resized to `ori_shape`; otherwise they have `img_shape`.

    Returns:
        `bboxes` fp32 `[M, 4]` tight xyxy, `scores`, `labels` and `masks` bool `[M, H, W]`.
    """
    img_shape = tuple(meta["img_shape"][:2])
    out_shape = tuple(meta["ori_shape"][:2]) if rescale else img_shape
    chosen, row = kernels.unique(return_inverse=True)
    # A few masks at a time: probabilities of a large image take four times the memory of its masks.
    count = max(1, _PIXELS_AT_ONCE // (out_shape[0] * out_shape[1]))
    parts = mask_logits[chosen].split(count)
    masks = torch.cat(
        [masks_at_image_size(part, batch_shape, img_shape, out_shape) > mask_thr for part in parts]
    )
    return InstanceData(bboxes=tight_boxes(masks)[row], scores=scores, labels=labels, masks=masks[row])
