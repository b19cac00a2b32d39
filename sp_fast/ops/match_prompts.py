"""Prompt-kernel matching (Eq. 6-8)."""

from __future__ import annotations

import torch
from torch import Tensor

from sp_fast.ops import gradients, reference
from sp_fast.ops.checks import FLOATS_AND_DOUBLE, INTS, check_same_dtype, check_tensor, check_values
from sp_fast.ops.extension import register
from sp_fast.ops.triton_kernels import triton_for


def match_prompts(kernels: Tensor, prompts: Tensor, count: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Add to every kernel the prompt most similar to it (Eq. 6-8 of Saliency Prompt, CVPR 2023).

    index = argmax over the first `count` prompts of cos(kernel, prompt): the lowest index on ties, never a
    NaN, -1 if there is no prompt to choose; decorated = kernels + prompts[index]. Vectors are divided by
    max(norm, 1e-8). `decorated` is differentiable in kernels and prompts; the index is not.

    Args:
        kernels: kernels shared by all images [N, C] or per image [B, N, C], fp32, fp16, bf16 or fp64.
        prompts: prompts per image [B, L, C], same dtype.
        count: number of real prompts per image, int32 or int64 [B], in [0, L]; the rest is padding.
            None: no padding.

    Returns:
        decorated [B, N, C] in the dtype of the inputs, and index int64 [B, N].

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong rank, shape, device or value.
    """
    check_arguments(kernels, prompts, count)
    return _op(kernels, prompts, count)


def check_arguments(kernels: Tensor, prompts: Tensor, count: Tensor | None) -> None:
    """Check types, shapes and devices (TypeError, ValueError)."""
    check_tensor("prompts", prompts, ("B", "L", "C"), FLOATS_AND_DOUBLE)
    batch, _, channels = prompts.shape
    shared = isinstance(kernels, Tensor) and kernels.dim() == 2
    shape = ("N", channels) if shared else (batch, "N", channels)
    check_tensor("kernels", kernels, shape, FLOATS_AND_DOUBLE, like=prompts)
    check_same_dtype("kernels", kernels, "prompts", prompts)
    if count is not None:
        check_tensor("count", count, (batch,), INTS, like=prompts)


def _fake(kernels: Tensor, prompts: Tensor, count: Tensor | None) -> tuple[Tensor, Tensor]:
    batch, number = prompts.shape[0], kernels.shape[-2]
    return (
        prompts.new_empty(batch, number, prompts.shape[2]),
        prompts.new_empty(batch, number, dtype=torch.int64),
    )


def _reference(kernels: Tensor, prompts: Tensor, count: Tensor | None) -> tuple[Tensor, Tensor]:
    check_values("count", count, 0, prompts.shape[1])
    return reference.match_prompts(kernels, prompts, count)


def _on_gpu(kernels: Tensor, prompts: Tensor, count: Tensor | None) -> tuple[Tensor, Tensor]:
    check_arguments(kernels, prompts, count)
    module = triton_for(prompts) or reference
    return module.match_prompts(kernels, prompts, count)


def _fake_backward(
    grad: Tensor, index: Tensor, prompts: int, sum_kernels: bool, sum_prompts: bool
) -> tuple[Tensor, Tensor]:
    batch, number, channels = grad.shape
    return (
        grad.new_empty((number, channels) if sum_kernels else (0,)),
        grad.new_empty((batch, prompts, channels) if sum_prompts else (0,)),
    )


def _backward_on_gpu(
    grad: Tensor, index: Tensor, prompts: int, sum_kernels: bool, sum_prompts: bool
) -> tuple[Tensor, Tensor]:
    check_tensor("grad", grad, ("B", "N", "C"), FLOATS_AND_DOUBLE)
    check_tensor("index", index, tuple(grad.shape[:2]), INTS, like=grad)
    module = triton_for(grad) or gradients
    return module.match_prompts_backward(grad, index, prompts, sum_kernels, sum_prompts)


_op = register("match_prompts", _fake, _reference, _on_gpu)
register("match_prompts_backward", _fake_backward, gradients.match_prompts_backward, _backward_on_gpu)
