"""Mask2Former's pixel decoder, which asks the GPU for no sizes of its maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmdet.models.layers import MSDeformAttnPixelDecoder
from mmdet.registry import MODELS
from torch import Tensor

from sp_fast.transfers import to_device


def decode_pixels(decoder: MSDeformAttnPixelDecoder, feats: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """What `MSDeformAttnPixelDecoder.forward` computes.

    Args:
        decoder: mmdet's pixel decoder.
        feats: maps of the backbone `[B, C_i, h_i, w_i]`, finest first.

    Returns:
        The mask features `[B, C, h, w]`, and the memories, coarsest first.
    """
    batch, device = len(feats[0]), feats[0].device
    levels = range(
        decoder.num_input_levels - 1, decoder.num_input_levels - 1 - decoder.num_encoder_levels, -1
    )
    shapes = [tuple(feats[level].shape[-2:]) for level in levels]
    cells = [height * width for height, width in shapes]
    inputs, positions, points = [], [], []
    for i, (level, (height, width)) in enumerate(zip(levels, shapes, strict=True)):
        inputs.append(decoder.input_convs[i](feats[level]).flatten(2).permute(0, 2, 1))
        nothing = torch.zeros(batch, height, width, dtype=torch.bool, device=device)
        position = decoder.postional_encoding(nothing) + decoder.level_encoding.weight[i].view(1, -1, 1, 1)
        positions.append(position.flatten(2).permute(0, 2, 1))
        centres = decoder.point_generator.single_level_grid_priors((height, width), level, device=device)
        stride = decoder.strides[level]
        points.append(torch.stack([centres[:, 0] / (width * stride), centres[:, 1] / (height * stride)], 1))
    starts = [sum(cells[:i]) for i in range(len(cells))]
    memory = decoder.encoder(
        query=torch.cat(inputs, 1),
        query_pos=torch.cat(positions, 1),
        key_padding_mask=torch.zeros(batch, sum(cells), dtype=torch.bool, device=device),
        spatial_shapes=to_device(shapes, device),
        reference_points=torch.cat(points)[None, :, None].repeat(batch, 1, len(shapes), 1),
        level_start_index=to_device(starts, device),
        valid_ratios=torch.ones(batch, len(shapes), 2, device=device),
    )
    maps = memory.permute(0, 2, 1).split(cells, dim=-1)
    outs = [one.unflatten(2, shape) for one, shape in zip(maps, shapes, strict=True)]
    for i in range(decoder.num_input_levels - decoder.num_encoder_levels - 1, -1, -1):
        lateral = decoder.lateral_convs[i](feats[i])
        above = F.interpolate(outs[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
        outs.append(decoder.output_convs[i](lateral + above))
    return decoder.mask_feature(outs[-1]), outs[: decoder.num_outs]


@MODELS.register_module()
class BatchedPixelDecoder(MSDeformAttnPixelDecoder):
    """mmdet's `MSDeformAttnPixelDecoder`, without waits for the GPU of its own."""

    def forward(self, feats: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """See mmdet."""
        return decode_pixels(self, feats)
