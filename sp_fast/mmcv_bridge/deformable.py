"""mmcv's multi-scale deformable attention, as the op of `sp_fast.ops`."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from sp_fast.ops import deformable_attention


def attend(
    value: Tensor,
    value_spatial_shapes: Tensor | Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Multi-scale deformable attention [B, Q, heads * D]; see `sp_fast.ops.deformable_attention`.

    value [B, keys, heads, D]; spatial shapes int [levels, 2], height and width; sampling_locations
    [B, Q, heads, levels, points, 2], x and y in [0, 1]; attention_weights [B, Q, heads, levels, points].
    """
    sizes = torch.as_tensor(value_spatial_shapes, device=value.device)
    return deformable_attention(value, sizes, sampling_locations, attention_weights)


class DeformableAttentionFunction:
    """Stands in for mmcv's autograd function, which rounds locations to the dtype of the values.

    In bfloat16 that moves points by up to a quarter of a cell of a map 128 cells wide.
    """

    @staticmethod
    def apply(
        value: Tensor,
        value_spatial_shapes: Tensor,
        value_level_start_index: Tensor,
        sampling_locations: Tensor,
        attention_weights: Tensor,
        im2col_step: int,
    ) -> Tensor:
        """See `attend`; the levels follow each other, so their starts are not needed."""
        return attend(value, value_spatial_shapes, sampling_locations, attention_weights)


def replace_in(module: ModuleType) -> None:
    """Make `mmcv.ops.multi_scale_deform_attn` call the op, on GPUs and on the CPU."""
    module.MultiScaleDeformableAttnFunction = DeformableAttentionFunction  # type: ignore[attr-defined]
    module.multi_scale_deformable_attn_pytorch = attend  # type: ignore[attr-defined]
