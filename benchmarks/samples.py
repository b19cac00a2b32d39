"""Random annotations of an image, as a training step takes them."""

from __future__ import annotations

import sp_fast.models  # noqa: F401

# isort: split
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData


def sample(height: int, width: int, objects: int, seed_channels: int) -> DetDataSample:
    """Annotations of one image: random boxes of 30 % of its sides as masks, with seeds."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(objects, height, width, dtype=torch.uint8)
    low = torch.rand(objects, 2, generator=generator) * torch.tensor([width, height]) * 0.6
    boxes = torch.cat([low, low + torch.tensor([width, height]) * 0.3], 1)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
    instances = InstanceData(
        bboxes=boxes,
        labels=torch.zeros(objects, dtype=torch.int64),
        masks=BitmapMasks(masks.numpy(), height, width),
        seeds=torch.randn(objects, seed_channels, generator=generator),
    )
    shape = (height, width)
    meta = dict(img_shape=shape, ori_shape=shape, batch_input_shape=shape, scale_factor=(1.0, 1.0))
    return DetDataSample(metainfo=meta, gt_instances=instances)
