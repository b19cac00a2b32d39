"""QueryInst for export: mmdet picks RoIs, levels and images one by one, which cannot be traced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from torch import Tensor
from torchvision.ops import roi_align

from sp_fast.export.preprocessing import Prepared
from sp_fast.export.segmenter import Segmenter, rows_of


class QueryInstSegmenter(Segmenter):
    """mmdet's QueryInst: `SparseRoIHead.predict` for a whole batch."""

    def find(self, prepared: Prepared, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """See the base class."""
        head, rpn = self.detector.roi_head, self.detector.rpn_head
        pyramid = self.detector.extract_feat(prepared.pixels)
        batch = prepared.pixels.shape[0]
        sides = _xyxy(prepared.width, prepared.height, pyramid[0])
        boxes = bbox_cxcywh_to_xyxy(rpn.init_proposal_bboxes.weight) * sides
        boxes = boxes.expand(batch, -1, -1)
        kernels = rpn.init_proposal_features.weight.expand(batch, -1, -1)
        for extractor, stage in zip(head.bbox_roi_extractor, head.bbox_head, strict=True):
            features = _pool(extractor, pyramid, boxes)
            logits, deltas, kernels, attended = stage(features, kernels)
            flat = stage.bbox_coder.decode(
                boxes.flatten(0, 1), deltas.flatten(0, 1), max_shape=(prepared.height, prepared.width)
            )
            boxes = flat.unflatten(0, boxes.shape[:2])
        # Masks of all proposals, then those of the pairs of proposal and class with the highest scores.
        features = _pool(head.mask_roi_extractor[-1], pyramid, boxes)
        maps = head.mask_head[-1](features, attended).unflatten(0, boxes.shape[:2])  # [B, N, K or 1, m, m]
        scores, index = _scores(head.bbox_head[-1], logits).flatten(1).topk(head.test_cfg.max_per_img, dim=1)
        classes = head.bbox_head[-1].num_classes
        labels, rows = index % classes, index // classes
        boxes = boxes.gather(1, rows[..., None].expand(-1, -1, 4))
        if head.mask_head[-1].class_agnostic:
            index = rows
        maps = rows_of(maps.flatten(1, 2), index)
        boxes = boxes / (sides / _xyxy(size[1], size[0], boxes))
        return scores, labels, _paste(maps.sigmoid(), boxes, size) >= head.test_cfg.mask_thr_binary


def _scores(head: Any, logits: Tensor) -> Tensor:
    return logits.sigmoid() if head.loss_cls.use_sigmoid else logits.softmax(-1)[..., :-1]


def _xyxy(width: int, height: int, like: Tensor) -> Tensor:
    return torch.stack(
        [torch.scalar_tensor(side, device=like.device) for side in (width, height, width, height)]
    )


def _pool(extractor: Any, pyramid: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """RoI features `[B N, C, s, s]` of boxes `[B, N, 4]`: each from the level of its size.

    Every box is pooled from every level, since which are needed is known only while the model runs.
    """
    image = torch.arange(boxes.shape[0], dtype=boxes.dtype, device=boxes.device)
    image = image[:, None, None].expand(-1, boxes.shape[1], -1)
    rois = torch.cat([image, boxes], 2).flatten(0, 1)
    size = ((rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])).sqrt()
    level = torch.floor(torch.log2(size / extractor.finest_scale + 1e-6))
    level = level.clamp(0, extractor.num_inputs - 1)[:, None, None, None]  # NaN: a turned box, of no level
    pooled = rois.new_zeros(())
    for i, layer in enumerate(extractor.roi_layers):
        one = roi_align(
            pyramid[i], rois, layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned
        )
        pooled = torch.where(level == i, one, pooled)
    return pooled


def _paste(maps: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps `[B, K, m, m]` resized bilinearly to boxes `[B, K, 4]` in images of zeros `[B, K, H, W]`."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    rows = _weights(y0, y1, size[0], maps.shape[2])  # [B, K, H, m]
    columns = _weights(x0, x1, size[1], maps.shape[3])  # [B, K, W, m]
    return rows @ maps @ columns.transpose(2, 3)


def _weights(start: Tensor, end: Tensor, length: int, cells: int) -> Tensor:
    """Bilinear weight of each of a map's cells at each pixel, `[B, K, length, cells]`; 0 outside the box."""
    pixel = torch.arange(length, dtype=start.dtype, device=start.device) + 0.5
    share = (pixel - start[..., None]) / (end - start)[..., None]
    share = torch.where(share.isinf(), 0.5, share)  # a box without extent, as in mmdet
    cell = torch.arange(cells, dtype=start.dtype, device=start.device)
    return (1 - ((share * cells - 0.5)[..., None] - cell).abs()).clamp(min=0)
