"""Training targets: the objects of a batch, padded to the largest count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

TARGET_STRIDE = 4


class Targets(NamedTuple):
    """The objects of B images, each image's at the front, the rest padding.

    Attributes:
        masks: fp32 `[B, G, H/4, W/4]` in [0, 1], over the padded image; padding is 0.
        labels: int64 `[B, G]`; padding is 0.
        count: int64 `[B]`, objects of each image.
    """

    masks: Tensor
    labels: Tensor
    count: Tensor


def quarter_size(masks: np.ndarray, height: int, width: int) -> np.ndarray:
    """Masks padded with zeros to the batch's size and resized bilinearly to a quarter of it, times 4.

    Bilinear resizing by exactly 1/4 (cell centres aligned) is the mean of the 2 x 2 cells in the middle of
    each 4 x 4 block: the sum of four slices, exact in uint8.

    Args:
        masks: `[G, h, w]` of 0 and 1, h <= height, w <= width.
        height: of the padded batch, a multiple of 4.
        width: the same.

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
    """The masks of mmdet's data samples, at a quarter of the batch's size.

    Args:
        data_samples: B, each with `gt_instances.masks` (mmdet's bitmap or polygon masks).
        batch_shape: height and width of the padded batch, multiples of 4.
        device: of the result.

    Returns:
        fp32 `[B, G, H/4, W/4]` in [0, 1], G being the largest count; see :class:`Targets`.

    Raises:
        ValueError: a mask larger than the batch.
    """
    height, width = batch_shape
    resized = []
    for i, sample in enumerate(data_samples):
        masks = sample.gt_instances.masks
        if masks.height > height or masks.width > width:
            raise ValueError(
                f"data_samples[{i}]: expected masks within the batch's {height} x {width}, got "
                f"{masks.height} x {masks.width}; resize masks together with images"
            )
        resized.append(quarter_size(masks.to_ndarray(), height, width))
    most = max((len(one) for one in resized), default=0)
    padded: np.ndarray = np.zeros(
        (len(resized), most, height // TARGET_STRIDE, width // TARGET_STRIDE), np.uint8
    )
    for i, one in enumerate(resized):
        padded[i, : len(one)] = one
    return torch.from_numpy(padded).to(device).float() / 4


def targets_from_samples(
    data_samples: Sequence[Any], batch_shape: tuple[int, int], num_classes: int, device: torch.device
) -> Targets:
    """The instances of mmdet's data samples as :class:`Targets`.

    Args:
        data_samples: B, each with `gt_instances.masks` (mmdet's bitmap or polygon masks) and `.labels`.
        batch_shape: height and width of the padded batch, multiples of 4.
        num_classes: K, to check the labels against.
        device: of the result.

    Raises:
        ValueError: a mask larger than the batch, or a label outside 0..K-1 (labels on the CPU alone are
            looked at: elsewhere it would synchronise).
    """
    masks = padded_masks(data_samples, batch_shape, device)
    counts = [len(sample.gt_instances.labels) for sample in data_samples]
    labels = torch.zeros(masks.shape[:2], dtype=torch.int64, device=device)
    for i, sample in enumerate(data_samples):
        own = sample.gt_instances.labels
        if own.device.type == "cpu" and ((own < 0) | (own >= num_classes)).any():
            raise ValueError(
                f"data_samples[{i}]: expected labels in 0..{num_classes - 1}, got "
                f"{sorted(set(own.tolist()))}; set num_classes of rpn_head and mask_head to the data set's"
            )
        labels[i, : counts[i]] = own
    return Targets(masks, labels, torch.tensor(counts, dtype=torch.int64, device=device))
