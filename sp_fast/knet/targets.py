"""Training targets: the objects of a batch, padded to the largest count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sp_fast.knet.packed_bitmaps import PackedBitmaps
from sp_fast.transfers import to_device

TARGET_STRIDE = 4


class Targets(NamedTuple):
    """The objects of B images; those of each image come first, followed by padding.

    Attributes:
        masks: fp32 `[B, G, H/4, W/4]` in [0, 1], covering the padded image; 0 in padding.
        labels: int64 `[B, G]`; 0 in padding.
        count: int64 `[B]`, number of objects in each image.
    """

    masks: Tensor
    labels: Tensor
    count: Tensor


def quarter_size(masks: np.ndarray, height: int, width: int) -> np.ndarray:
    """Pads masks with zeros to the batch's size and resizes them bilinearly to a quarter of it, times 4.

    Bilinear resizing by exactly 1/4 (cell centres aligned) is the mean of the 2 x 2 cells in the middle of
    each 4 x 4 block, so four times that is the sum of four slices, exact in uint8.

    Args:
        masks: masks `[G, h, w]` of 0 and 1, h <= height, w <= width.
        height: height of the padded batch, a multiple of 4.
        width: width of the padded batch, a multiple of 4.

    Returns:
        uint8 `[G, height / 4, width / 4]` in 0..4.
    """
    resized: np.ndarray = np.zeros((len(masks), height // TARGET_STRIDE, width // TARGET_STRIDE), np.uint8)
    for y in (1, 2):
        for x in (1, 2):
            middle = masks[:, y::TARGET_STRIDE, x::TARGET_STRIDE]
            resized[:, : middle.shape[1], : middle.shape[2]] += middle.astype(np.uint8, copy=False)
    return resized


def padded_masks(data_samples: Sequence[Any], batch_shape: tuple[int, int], device: torch.device) -> Tensor:
    """Stacks the masks of mmdet's data samples at a quarter of the batch's size.

    Args:
        data_samples: B data samples with `gt_instances.masks` (mmdet's bitmap or polygon masks).
        batch_shape: height and width of the padded batch, multiples of 4.
        device: device of the result.

    Returns:
        fp32 `[B, G, H/4, W/4]` in [0, 1], where G is the largest count; see `Targets`.

    Raises:
        ValueError: a mask larger than the batch.
    """
    height, width = batch_shape
    found = []
    for i, sample in enumerate(data_samples):
        masks = sample.gt_instances.masks
        if masks.height > height or masks.width > width:
            raise ValueError(
                f"data_samples[{i}]: expected masks within the batch's {height} x {width}, got "
                f"{masks.height} x {masks.width}; resize masks together with images"
            )
        found.append(to_device(_cells(masks), device))
    most = max((len(one) for one in found), default=0)
    size = height // TARGET_STRIDE, width // TARGET_STRIDE
    padded = torch.zeros(len(found), most, *size, device=device)
    for whole, one in zip(padded, found, strict=True):
        whole[: len(one), : one.shape[1], : one.shape[2]] = one
    return padded.div_(4)


def _cells(masks: Any) -> Tensor:
    """The cells of one image's masks, 0..4, uint8 `[G, ceil(h / 4), ceil(w / 4)]`."""
    if isinstance(masks, PackedBitmaps) and masks.quarter:
        return masks.cells()
    height, width = (-(-side // TARGET_STRIDE) * TARGET_STRIDE for side in (masks.height, masks.width))
    return torch.from_numpy(quarter_size(masks.to_ndarray(), height, width))


def targets_from_samples(
    data_samples: Sequence[Any], batch_shape: tuple[int, int], num_classes: int, device: torch.device
) -> Targets:
    """Turns the instances of mmdet's data samples into `Targets`.

    Args:
        data_samples: B data samples; `gt_instances` has `labels` and mmdet's bitmap or polygon `masks`.
        batch_shape: height and width of the padded batch, multiples of 4.
        num_classes: K, the number of classes; labels must be in 0..K-1.
        device: device of the result.

    Raises:
        ValueError: a mask larger than the batch, or a label outside 0..K-1. Only labels on the CPU are
            checked; on a GPU this would synchronise.
    """
    masks = padded_masks(data_samples, batch_shape, device)
    counts = [len(sample.gt_instances.labels) for sample in data_samples]
    labels = torch.zeros(masks.shape[:2], dtype=torch.int64, device=device)
    for i, sample in enumerate(data_samples):
        found = sample.gt_instances.labels
        if found.device.type == "cpu" and ((found < 0) | (found >= num_classes)).any():
            raise ValueError(
                f"data_samples[{i}]: expected labels in 0..{num_classes - 1}, got "
                f"{sorted(set(found.tolist()))}; set num_classes of rpn_head and mask_head to the data set's"
            )
        labels[i, : counts[i]] = found
    return Targets(masks, labels, to_device(counts, device, torch.int64))
