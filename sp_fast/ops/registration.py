"""What PyTorch's dispatcher needs beside the compiled ops: fake kernels, and ops on a GPU that are not CUDA.

On a GPU, prompt matching and the kernel loss are Triton's (`sp_fast.kernels`), the rest is the extension's;
the reference serves for what the extension was built without. Imported once, when the extension is there.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from sp_fast.ops import gradients, packing, reference
from sp_fast.ops.checks import FLOATS_AND_DOUBLE, INTS, check_tensor
from sp_fast.ops.kernel_supervision_loss import check_arguments as check_loss_arguments
from sp_fast.ops.match_prompts import check_arguments as check_match_arguments
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
    return features.new_empty(features.shape[0], seeds, features.shape[1])


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
def _(
    grad: Tensor, boxes: Tensor, count: Tensor | None, height: int, width: int, channels_last: bool
) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    shape = (grad.shape[0], grad.shape[2], height, width)
    return torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=layout)


@torch.library.register_fake("sp_fast::match_prompts")
def _(kernels: Tensor, prompts: Tensor, count: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, number = prompts.shape[0], kernels.shape[-2]
    return (
        prompts.new_empty(batch, number, prompts.shape[2]),
        prompts.new_empty(batch, number, dtype=torch.int64),
    )


@torch.library.register_fake("sp_fast::match_prompts_backward")
def _(
    grad: Tensor, index: Tensor, prompts: int, sum_kernels: bool, sum_prompts: bool
) -> tuple[Tensor, Tensor]:
    batch, number, channels = grad.shape
    return (
        grad.new_empty((number, channels) if sum_kernels else (0,)),
        grad.new_empty((batch, prompts, channels) if sum_prompts else (0,)),
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


@functools.cache
def _triton() -> ModuleType | None:
    """The Triton kernels; imported when the first CUDA tensor comes."""
    try:
        return importlib.import_module("sp_fast.kernels")
    except ImportError as error:
        warnings.warn(
            f"sp_fast.kernels is not usable ({error}); on the GPU, match_prompts and kernel_supervision_loss "
            "run in plain PyTorch, slower. Install Triton.",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def _triton_for(x: Tensor) -> ModuleType | None:
    """The Triton kernels, if they take vectors such as x. They rely on arguments that were checked."""
    kernels = _triton()
    return kernels if kernels is not None and kernels.supports(x) else None


def _match_prompts(kernels: Tensor, prompts: Tensor, count: Tensor | None) -> tuple[Tensor, Tensor]:
    check_match_arguments(kernels, prompts, count)
    by = _triton_for(prompts) or reference
    return by.match_prompts(kernels, prompts, count)


def _match_prompts_backward(
    grad: Tensor, index: Tensor, prompts: int, sum_kernels: bool, sum_prompts: bool
) -> tuple[Tensor, Tensor]:
    check_tensor("grad", grad, ("B", "N", "C"), FLOATS_AND_DOUBLE)
    check_tensor("index", index, tuple(grad.shape[:2]), INTS, like=grad)
    by = _triton_for(grad) or gradients
    return by.match_prompts_backward(grad, index, prompts, sum_kernels, sum_prompts)


def _kernel_supervision_loss(kernels: Tensor, targets: Tensor, index: Tensor, mean: bool) -> Tensor:
    check_loss_arguments(kernels, targets, index)
    by = _triton_for(kernels)
    if by is not None:
        return by.kernel_supervision_loss(kernels, targets, index, mean)
    reduction = "mean" if mean else "sum"
    return reference.kernel_supervision_loss(kernels, targets, index, reduction=reduction)


def _kernel_supervision_loss_backward(
    grad: Tensor, kernels: Tensor, targets: Tensor, index: Tensor, mean: bool
) -> tuple[Tensor, Tensor]:
    check_loss_arguments(kernels, targets, index)
    check_tensor("grad", grad, (), FLOATS_AND_DOUBLE, like=kernels)
    by = _triton_for(kernels) or gradients
    return by.kernel_supervision_loss_backward(grad, kernels, targets, index, mean)


for _name, _function in {
    "pack_masks": packing.pack_masks,
    "unpack_masks": packing.unpack_masks,
    "mask_areas": packing.mask_areas,
    "mask_boxes": packing.mask_boxes,
    "pool_seeds": _pool_seeds,
    "seed_saliency": _seed_saliency,
    "mask_nms": _mask_nms,
    "take_proposals": reference.take_proposals,
    "matrix_nms": _matrix_nms,
    "roi_average_pool": reference.roi_average_pool,
    "roi_average_pool_backward": gradients.roi_average_pool_backward,
    "match_prompts": _match_prompts,
    "match_prompts_backward": _match_prompts_backward,
    "kernel_supervision_loss": _kernel_supervision_loss,
    "kernel_supervision_loss_backward": _kernel_supervision_loss_backward,
}.items():
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"sp_fast::{_name}", "CUDA"):
        _library.impl(_name, _function, "CUDA")
