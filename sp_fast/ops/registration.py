"""What PyTorch's dispatcher needs beside the compiled CPU ops: fake kernels, and CUDA through the reference.

Imported once, when the extension is there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sp_fast.ops import reference
from sp_fast.ops.packed_masks import PackedMasks
from sp_fast.ops.packing import words_for

_library = torch.library.Library("sp_fast", "IMPL")


@torch.library.register_fake("sp_fast::pack_masks")
def _(masks: Tensor) -> Tensor:
    height, width = masks.shape[-2:]
    return masks.new_empty(*masks.shape[:-2], words_for(height, width), dtype=torch.int32)


@torch.library.register_fake("sp_fast::unpack_masks")
def _(words: Tensor, height: int, width: int) -> Tensor:
    return words.new_empty(*words.shape[:-1], height, width, dtype=torch.bool)


@torch.library.register_fake("sp_fast::mask_areas")
def _(words: Tensor) -> Tensor:
    return words.new_empty(words.shape[:-1])


@torch.library.register_fake("sp_fast::mask_boxes")
def _(words: Tensor, height: int, width: int) -> Tensor:
    return words.new_empty(*words.shape[:-1], 4)


@torch.library.register_fake("sp_fast::pool_seeds")
def _(features: Tensor, grid: Sequence[int], valid: Tensor | None) -> Tensor:
    seeds = sum(rows * columns for rows, columns in _pairs(grid))
    return features.new_empty(features.shape[0], features.shape[1], seeds).transpose(1, 2)


@torch.library.register_fake("sp_fast::seed_saliency")
def _(
    features: Tensor, seeds: Tensor, valid: Tensor | None, cosine: bool, threshold: float
) -> tuple[Tensor, Tensor]:
    batch, number = seeds.shape[:2]
    words = words_for(features.shape[2], features.shape[3])
    return (
        features.new_empty(batch, number, words, dtype=torch.int32),
        features.new_empty(batch, number, dtype=torch.float32),
    )


@torch.library.register_fake("sp_fast::mask_nms")
def _(words: Tensor, score: Tensor, iou_threshold: float, min_area: int, max_masks: int) -> Tensor:
    return score.new_empty(score.shape[0], max_masks, dtype=torch.int64)


@torch.library.register_fake("sp_fast::take_proposals")
def _(words: Tensor, score: Tensor, seeds: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, most = chosen.shape
    return (
        words.new_empty(batch, most, words.shape[2]),
        score.new_empty(batch, most),
        seeds.new_empty(batch, most, seeds.shape[2]),
        chosen.new_empty(batch),
    )


@torch.library.register_fake("sp_fast::matrix_nms")
def _(words: Tensor, score: Tensor, gaussian: bool, sigma: float) -> Tensor:
    return score.new_empty(score.shape, dtype=torch.float32)


@torch.library.register_fake("sp_fast::roi_average_pool")
def _(features: Tensor, boxes: Tensor, count: Tensor | None) -> Tensor:
    return features.new_empty(features.shape[0], boxes.shape[1], features.shape[1])


@torch.library.register_fake("sp_fast::roi_average_pool_backward")
def _(grad: Tensor, boxes: Tensor, count: Tensor | None, height: int, width: int) -> Tensor:
    return grad.new_empty(grad.shape[0], grad.shape[2], height, width)


@torch.library.register_fake("sp_fast::match_prompts")
def _(kernels: Tensor, prompts: Tensor, count: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, number = prompts.shape[0], kernels.shape[-2]
    return (
        prompts.new_empty(batch, number, prompts.shape[2]),
        prompts.new_empty(batch, number, dtype=torch.int64),
    )


@torch.library.register_fake("sp_fast::kernel_supervision_loss")
def _(kernels: Tensor, targets: Tensor, index: Tensor, mean: bool) -> Tensor:
    return kernels.new_empty((), dtype=torch.float64 if kernels.dtype == torch.float64 else torch.float32)


@torch.library.register_fake("sp_fast::kernel_supervision_loss_backward")
def _(grad: Tensor, kernels: Tensor, targets: Tensor, index: Tensor, mean: bool) -> tuple[Tensor, Tensor]:
    return kernels.new_empty(kernels.shape), targets.new_empty(targets.shape)


def _pairs(grid: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(grid[::2], grid[1::2], strict=True))


def _cells(words: Tensor) -> PackedMasks:
    """The masks as one row of cells each: their shape does not matter to overlaps."""
    return PackedMasks(words, 1, 32 * words.shape[-1])


def _pool_seeds(features: Tensor, grid: Sequence[int], valid: Tensor | None) -> Tensor:
    return reference.pool_seeds(features, _pairs(grid), valid)


def _seed_saliency(
    features: Tensor, seeds: Tensor, valid: Tensor | None, cosine: bool, threshold: float
) -> tuple[Tensor, Tensor]:
    similarity = "cosine" if cosine else "dot"
    masks, score = reference.saliency_of_seeds(features, seeds, valid, similarity, threshold)
    return masks.words, score


def _mask_nms(words: Tensor, score: Tensor, iou_threshold: float, min_area: int, max_masks: int) -> Tensor:
    return reference.mask_nms(
        _cells(words), score, iou_threshold=iou_threshold, min_area=min_area, max_masks=max_masks
    )


def _matrix_nms(words: Tensor, score: Tensor, gaussian: bool, sigma: float) -> Tensor:
    kernel = "gaussian" if gaussian else "linear"
    return reference.matrix_nms(_cells(words), score, kernel=kernel, sigma=sigma)


def _kernel_supervision_loss(kernels: Tensor, targets: Tensor, index: Tensor, mean: bool) -> Tensor:
    reduction = "mean" if mean else "sum"
    return reference.kernel_supervision_loss(kernels, targets, index, reduction=reduction)


for _name, _function in {
    "pool_seeds": _pool_seeds,
    "seed_saliency": _seed_saliency,
    "mask_nms": _mask_nms,
    "matrix_nms": _matrix_nms,
}.items():
    _library.impl(_name, _function, "CUDA")

for _name, _function in {
    "roi_average_pool": reference.roi_average_pool,
    "match_prompts": reference.match_prompts,
    "kernel_supervision_loss": _kernel_supervision_loss,
}.items():
    _library.impl(_name, _function, "CUDA")
    # PyTorch differentiates the reference itself.
    _library.impl(_name, _function, "AutogradCUDA")
