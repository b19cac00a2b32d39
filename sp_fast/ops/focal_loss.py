"""Focal loss of upsampled class maps."""

from __future__ import annotations

import torch
from torch import Tensor

from sp_fast.ops import mask_sums_reference as reference
from sp_fast.ops.checks import FLOATS_AND_DOUBLE, INTS, check_map, check_number, check_tensor
from sp_fast.ops.extension import register
from sp_fast.ops.triton_kernels import triton_for


def upsampled_focal_loss(logits: Tensor, labels: Tensor, *, alpha: float = 0.25) -> Tensor:
    """Sigmoid focal loss with gamma = 2 of class maps upsampled bilinearly by 2, summed over all elements.

    With z = -x and a = alpha where the class is the cell's label, z = x and a = 1 - alpha elsewhere: the sum
    of a sigmoid(z)^2 log(1 + exp(z)). No upsampled map and no one-hot label is kept. Differentiable in the
    logits.

    Args:
        logits: class logits [B, K, h, w], fp32, fp16, bf16 or fp64.
        labels: class of each cell, int32 or int64 [B, 2 h, 2 w]; not in 0..K-1 for background.
        alpha: weight of the labels.

    Returns:
        Scalar, fp32 (fp64 for fp64 logits).

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong rank, shape, device or value.
    """
    check_arguments(logits, labels)
    check_number("alpha", alpha, 0, 1)
    return _op(logits, labels, float(alpha))


def check_arguments(logits: Tensor, labels: Tensor) -> None:
    """Check types, shapes and devices (TypeError, ValueError)."""
    check_tensor("logits", logits, ("B", "K", "h", "w"), FLOATS_AND_DOUBLE)
    check_map("logits", logits)
    batch, _, height, width = logits.shape
    check_tensor("labels", labels, (batch, 2 * height, 2 * width), INTS, like=logits)


def _fake(logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    return logits.new_empty((), dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)


def _on_gpu(logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    check_arguments(logits, labels)
    return (triton_for(logits) or reference).upsampled_focal_loss(logits, labels, alpha)


def _fake_backward(grad: Tensor, logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    return logits.new_empty(logits.shape)


def _backward_on_gpu(grad: Tensor, logits: Tensor, labels: Tensor, alpha: float) -> Tensor:
    check_arguments(logits, labels)
    check_tensor("grad", grad, (), FLOATS_AND_DOUBLE, like=logits)
    return (triton_for(logits) or reference).upsampled_focal_loss_backward(grad, logits, labels, alpha)


_op = register("upsampled_focal_loss", _fake, reference.upsampled_focal_loss, _on_gpu)
register(
    "upsampled_focal_loss_backward",
    _fake_backward,
    reference.upsampled_focal_loss_backward,
    _backward_on_gpu,
)
