"""From the last stage's outputs to instances at image size."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData
from torch import Tensor

from sp_fast.knet.masks import upsample


def select_top(cls_logits: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best pairs of kernel and class of each image.

    Args:
        cls_logits: `[B, N, K]`.
        limit: how many at most.

    Returns:
        Scores, int64 labels and int64 kernel indices, each `[B, min(limit, N K)]`, best first.
    """
    classes = cls_logits.shape[2]
    scores = cls_logits.float().sigmoid().flatten(1)
    scores, index = scores.topk(min(limit, scores.shape[1]), dim=1)
    return scores, index % classes, index // classes


def masks_at_image_size(
    mask_logits: Tensor, batch_shape: tuple[int, int], img_shape: tuple[int, int], out_shape: tuple[int, int]
) -> Tensor:
    """Mask probabilities at stride 8, brought to an image's size.

    x2, sigmoid, bilinear to the padded input's size, crop to the image, bilinear to `out_shape`.

    Args:
        mask_logits: `[M, h, w]`.
        batch_shape: height and width of the padded input.
        img_shape: of the image within it.
        out_shape: of the result.

    Returns:
        fp32 `[M, *out_shape]`.
    """
    masks = upsample(mask_logits.float()[:, None]).sigmoid()  # [M, 1, H, W]; M may be 0
    masks = F.interpolate(masks, size=batch_shape, mode="bilinear", align_corners=False)
    masks = masks[..., : img_shape[0], : img_shape[1]]
    if tuple(out_shape) != tuple(img_shape):
        masks = F.interpolate(masks, size=out_shape, mode="bilinear", align_corners=False)
    return masks[:, 0]


def tight_boxes(masks: Tensor) -> Tensor:
    """Tight half-open boxes, fp32 `[M, 4]` x0 y0 x1 y1 in pixels, of bool masks `[M, H, W]`; empty: zeros."""

    def extent(line: Tensor) -> tuple[Tensor, Tensor]:
        length = line.shape[1]
        line = line.byte()
        first, last = line.argmax(1), length - line.flip(1).argmax(1)
        inside = line.any(1)
        return first * inside, last * inside

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
    """One image's instances. A kernel chosen for several classes is resized once.

    Args:
        mask_logits: `[N, h, w]` at stride 8.
        scores: `[M]`.
        labels: int64 `[M]`.
        kernels: int64 `[M]`, rows of `mask_logits`.
        meta: `img_shape` and, to rescale, `ori_shape`.
        batch_shape: height and width of the padded input.
        mask_thr: a cell above it is inside.
        rescale: to `ori_shape`; otherwise the masks have `img_shape`.

    Returns:
        `bboxes` fp32 `[M, 4]` tight xyxy, `scores`, `labels` and `masks` bool `[M, H, W]`.
    """
    img_shape = tuple(meta["img_shape"][:2])
    out_shape = tuple(meta["ori_shape"][:2]) if rescale else img_shape
    chosen, row = kernels.unique(return_inverse=True)
    masks = masks_at_image_size(mask_logits[chosen], batch_shape, img_shape, out_shape) > mask_thr
    return InstanceData(bboxes=tight_boxes(masks)[row], scores=scores, labels=labels, masks=masks[row])
