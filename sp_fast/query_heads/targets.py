"""Annotations of a batch on the device, padded to the largest count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmdet.structures.mask import BitmapMasks
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sp_fast.knet.packed_bitmaps import crops_of
from sp_fast.knet.targets import Targets
from sp_fast.transfers import to_device


class MaskCrops:
    """Masks of an image that parts are cut out of.

    Args:
        cells: uint8 or bool `[G, h, w]`, inside or outside.
        stride: pixels per cell.
    """

    def __init__(self, cells: Tensor, stride: int = 1) -> None:
        self.cells, self.stride = cells, stride

    def crops(self, boxes: Tensor, index: Tensor, size: tuple[int, int]) -> Tensor:
        """See `PackedBitmaps.crops`."""
        return crops_of(self.cells, self.stride, boxes, index, size)


class BoxTargets(NamedTuple):
    """Boxes, labels and masks of B images; those of each image come first, followed by padding.

    Attributes:
        boxes: fp32 xyxy `[B, G, 4]`, in pixels of the padded batch.
        labels: int64 `[B, G]`.
        count: int64 `[B]`, number of objects in each image.
        sides: fp32 `[B, 1, 4]`, width, height, width and height of each image without padding.
        size: height and width within which boxes are clipped before their masks are cut out.
        masks: for each image what has `MaskCrops.crops`.
    """

    boxes: Tensor
    labels: Tensor
    count: Tensor
    sides: Tensor
    size: tuple[int, int]
    masks: Sequence[Any]


def image_sides(metas: Sequence[dict], like: Tensor) -> Tensor:
    """Width, height, width and height of each image without padding, `[B, 1, 4]`."""
    sides = [[one["img_shape"][1], one["img_shape"][0]] * 2 for one in metas]
    return to_device(sides, like.device, like.dtype)[:, None]


def box_targets(instances: Sequence[Any], metas: Sequence[dict]) -> BoxTargets:
    """Pads the annotations of mmdet's data samples.

    Args:
        instances: `gt_instances` of B images, on the device, with `bboxes`, `labels` and mmdet's `masks`.
        metas: meta information of the images.
    """
    boxes = [getattr(one.bboxes, "tensor", one.bboxes) for one in instances]
    device = boxes[0].device
    return BoxTargets(
        pad_sequence(boxes, batch_first=True),
        pad_sequence([one.labels for one in instances], batch_first=True),
        to_device([len(one) for one in boxes], device, torch.int64),
        image_sides(metas, boxes[0]),
        (instances[0].masks.height, instances[0].masks.width),
        [
            one.masks if hasattr(one.masks, "crops") else MaskCrops(mask_pixels(one.masks, device))
            for one in instances
        ],
    )


def mask_targets(instances: Sequence[Any]) -> Targets:
    """Pads labels and whole masks, fp32 `[B, G, H, W]`, of mmdet's data samples; see `box_targets`."""
    device = instances[0].labels.device
    masks = [mask_pixels(one.masks, device) for one in instances]
    most = max(len(one) for one in masks)
    return Targets(
        torch.stack([F.pad(one, (0, 0, 0, 0, 0, most - len(one))) for one in masks]).float(),
        pad_sequence([one.labels for one in instances], batch_first=True),
        to_device([len(one) for one in masks], device, torch.int64),
    )


def mask_pixels(masks: Any, device: torch.device) -> Tensor:
    """Mmdet's masks as uint8 `[G, h, w]` on the device."""
    if type(masks) is BitmapMasks:
        return to_device(masks.masks, device, torch.uint8)
    return masks.to_tensor(torch.uint8, device)
