"""Kernel supervision loss (Eq. 9)."""

from __future__ import annotations

import torch
from torch import Tensor

from sp_fast.ops import gradients, reference
from sp_fast.ops.checks import (
    FLOATS_AND_DOUBLE,
    INTS,
    check_choice,
    check_same_dtype,
    check_tensor,
    check_values,
)
from sp_fast.ops.extension import register
from sp_fast.ops.triton_kernels import triton_for


def kernel_supervision_loss(
    kernels: Tensor, targets: Tensor, index: Tensor, *, reduction: str = "mean"
) -> Tensor:
    """Cosine distance of the matched kernels from their targets (Eq. 9 of Saliency Prompt, CVPR 2023).

    The sum over stages s, images b and proposals l with index[s, b, l] >= 0 of
    1 - cos(targets[b, l], kernels[s, b, index[s, b, l]]), where vectors are divided by max(norm, 1e-8).
    Differentiable in `kernels` and `targets`; unmatched kernels and targets have a zero gradient.

    Args:
        kernels: kernels after each of the S update stages, fp32, fp16, bf16 or fp64 [S, B, N, C].
        targets: target of each proposal [B, L, C], same dtype.
        index: kernel matched with proposal l at stage s, or -1 for none, int32 or int64 [S, B, L].
        reduction: "sum" for this sum, "mean" for the mean over the pairs of each stage, summed over stages.

    Returns:
        Scalar, fp32 (fp64 for fp64 inputs); 0 if nothing is matched.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong rank, shape, device or value.
    """
    check_arguments(kernels, targets, index)
    check_choice("reduction", reduction, ("mean", "sum"))
    return _op(kernels, targets, index, reduction == "mean")


def check_arguments(kernels: Tensor, targets: Tensor, index: Tensor) -> None:
    """Check types, shapes and devices (TypeError, ValueError)."""
    check_tensor("kernels", kernels, ("S", "B", "N", "C"), FLOATS_AND_DOUBLE)
    stages, batch, _, channels = kernels.shape
    check_tensor("targets", targets, (batch, "L", channels), FLOATS_AND_DOUBLE, like=kernels)
    check_same_dtype("targets", targets, "kernels", kernels)
    check_tensor("index", index, (stages, batch, targets.shape[1]), INTS, like=kernels)


def _fake(kernels: Tensor, targets: Tensor, index: Tensor, mean: bool) -> Tensor:
    return kernels.new_empty((), dtype=torch.float64 if kernels.dtype == torch.float64 else torch.float32)


def _reference(kernels: Tensor, targets: Tensor, index: Tensor, mean: bool) -> Tensor:
    check_values("index", index, -1, kernels.shape[2] - 1)
    reduction = "mean" if mean else "sum"
    return reference.kernel_supervision_loss(kernels, targets, index, reduction=reduction)


def _on_gpu(kernels: Tensor, targets: Tensor, index: Tensor, mean: bool) -> Tensor:
    check_arguments(kernels, targets, index)
    triton = triton_for(kernels)
    op = _reference if triton is None else triton.kernel_supervision_loss
    return op(kernels, targets, index, mean)


def _fake_backward(
    grad: Tensor, kernels: Tensor, targets: Tensor, index: Tensor, mean: bool
) -> tuple[Tensor, Tensor]:
    return kernels.new_empty(kernels.shape), targets.new_empty(targets.shape)


def _backward_on_gpu(
    grad: Tensor, kernels: Tensor, targets: Tensor, index: Tensor, mean: bool
) -> tuple[Tensor, Tensor]:
    check_arguments(kernels, targets, index)
    check_tensor("grad", grad, (), FLOATS_AND_DOUBLE, like=kernels)
    module = triton_for(kernels) or gradients
    return module.kernel_supervision_loss_backward(grad, kernels, targets, index, mean)


_op = register("kernel_supervision_loss", _fake, _reference, _on_gpu)
register(
    "kernel_supervision_loss_backward",
    _fake_backward,
    gradients.kernel_supervision_loss_backward,
    _backward_on_gpu,
)
