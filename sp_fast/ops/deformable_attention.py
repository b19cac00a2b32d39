"""Multi-scale deformable attention."""

from __future__ import annotations

import torch
from torch import Tensor

from sp_fast.ops import deformable_reference
from sp_fast.ops.checks import FLOATS_AND_DOUBLE, INTS, check_tensor
from sp_fast.ops.extension import register
from sp_fast.ops.triton_kernels import triton_for


def deformable_attention(value: Tensor, sizes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of values at a few points of each level (Deformable DETR, Eq. 3, without projections).

    Row (b, q, m) is the sum over levels l and points p of weights[b, q, m, l, p] times the values of image b
    and head m at the point locations[b, q, m, l, p], interpolated bilinearly between the centres of cells;
    cells outside the map count as zero. Differentiable once in value, locations and weights. On a GPU the
    gradient of `value` is summed by atomic additions, so its last bits differ from run to run.

    Args:
        value: cells of all levels, each level row by row, fp32, fp16, bf16 or fp64 [B, K, M, D].
        sizes: height and width of each level, int32 or int64 [L, 2]; they have K cells in all.
        locations: x and y, floats [B, Q, M, L, P, 2]; (0, 0) is the upper left corner of a map, (1, 1)
            the lower right. NaN reads nothing.
        weights: floats [B, Q, M, L, P]. Like the locations they are used in fp32 (fp64 if `value` is fp64).

    Returns:
        Sums [B, Q, M * D] in the dtype of `value`.

    Raises:
        TypeError: an argument has a wrong type or dtype.
        ValueError: an argument has a wrong rank, shape or device, or (on the CPU) the sizes do not match K.
    """
    _check(value, sizes, locations, weights)
    wide = torch.promote_types(value.dtype, torch.float32)
    return _op(value, sizes, locations.to(wide), weights.to(wide))


def _check(value: Tensor, sizes: Tensor, locations: Tensor, weights: Tensor) -> None:
    check_tensor("value", value, ("B", "K", "M", "D"), FLOATS_AND_DOUBLE)
    check_tensor("sizes", sizes, ("L", 2), INTS, like=value)
    batch, _, heads, _ = value.shape
    levels = sizes.shape[0]
    if levels < 1:
        raise ValueError("sizes: expected at least one level, got none")
    check_tensor("locations", locations, (batch, "Q", heads, levels, "P", 2), FLOATS_AND_DOUBLE, like=value)
    check_tensor("weights", weights, tuple(locations.shape[:-1]), FLOATS_AND_DOUBLE, like=value)


def _fake(value: Tensor, sizes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    batch, _, heads, depth = value.shape
    return value.new_empty(batch, locations.shape[1], heads * depth)


def _on_gpu(value: Tensor, sizes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    _check(value, sizes, locations, weights)
    module = triton_for(value) or deformable_reference
    return module.deformable_attention(value, sizes, locations, weights)


def _fake_backward(
    grad: Tensor, value: Tensor, sizes: Tensor, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(x.new_empty(x.shape) for x in (value, locations, weights))


def _backward_on_gpu(
    grad: Tensor, value: Tensor, sizes: Tensor, locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    _check(value, sizes, locations, weights)
    check_tensor("grad", grad, (value.shape[0], locations.shape[1], "M D"), FLOATS_AND_DOUBLE, like=value)
    module = triton_for(value) or deformable_reference
    return module.deformable_attention_backward(grad, value, sizes, locations, weights)


_op = register("deformable_attention", _fake, deformable_reference.deformable_attention, _on_gpu)
register(
    "deformable_attention_backward",
    _fake_backward,
    deformable_reference.deformable_attention_backward,
    _backward_on_gpu,
)
