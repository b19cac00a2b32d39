"""Mask2Former for export: mmdet's pixel decoder keeps sizes in tensors, which cannot be traced."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sp_fast.export.segmenter import MapSegmenter, rows_of


class Mask2FormerSegmenter(MapSegmenter):
    """mmdet's Mask2Former, for instances (its `MaskFormerFusionHead.instance_postprocess`)."""

    def __init__(self, detector: Any, scale: tuple[int, int]) -> None:
        if detector.num_stuff_classes:
            raise ValueError(
                f"model: expected a Mask2Former without stuff classes, got {detector.num_stuff_classes}"
            )
        detector = copy.deepcopy(detector)
        detector.panoptic_head.pixel_decoder = PixelDecoder(detector.panoptic_head.pixel_decoder)
        super().__init__(detector, scale)

    def instances(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See the base class; maps are logits."""
        head, fusion = self.detector.panoptic_head, self.detector.panoptic_fusion_head
        classes, maps = (output[-1] for output in head(self.detector.extract_feat(pixels), None))
        probabilities = classes.softmax(-1)[..., :-1].flatten(1)
        limit = fusion.test_cfg.get("max_per_image", 100)
        scores, index = probabilities.topk(limit, dim=1)
        return scores, index % fusion.num_classes, rows_of(maps, index // fusion.num_classes)

    def decide(self, scores: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class; scores are multiplied by the mean probability inside the mask."""
        masks = maps > 0
        inside = masks.float()
        certainty = (maps.sigmoid() * inside).sum((2, 3)) / (inside.sum((2, 3)) + 1e-6)
        return scores * certainty, masks


class PixelDecoder(nn.Module):
    """mmdet's `MSDeformAttnPixelDecoder`, with the same results.

    Args:
        decoder: the trained decoder, which is changed.
    """

    def __init__(self, decoder: Any) -> None:
        super().__init__()
        for layer in decoder.encoder.layers:
            layer.self_attn = DeformableAttention(layer.self_attn)
        self.decoder = decoder

    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, list[Tensor]]:
        """The mask features, and the maps of the transformer decoder from coarse to fine."""
        decoder = self.decoder
        levels = [len(maps) - 1 - i for i in range(decoder.num_encoder_levels)]  # from coarse to fine
        sizes = [maps[level].shape[-2:] for level in levels]
        inputs, encodings, points = [], [], []
        for i, level in enumerate(levels):
            inputs.append(decoder.input_convs[i](maps[level]).flatten(2).transpose(1, 2))
            encoding = decoder.postional_encoding(None, maps[level])
            encoding = encoding + decoder.level_encoding.weight[i].view(1, -1, 1, 1)
            encodings.append(encoding.flatten(2).transpose(1, 2))
            points.append(_cell_centres(maps[level]))
        reference = torch.cat(points)[None, :, None].expand(maps[0].shape[0], -1, len(levels), -1)
        memory = decoder.encoder(
            query=torch.cat(inputs, 1),
            query_pos=torch.cat(encodings, 1),
            key_padding_mask=None,
            spatial_shapes=sizes,
            level_start_index=None,
            valid_ratios=None,
            reference_points=reference,
        )
        parts = memory.transpose(1, 2).split([height * width for height, width in sizes], 2)
        outs = [part.unflatten(2, size) for part, size in zip(parts, sizes, strict=True)]
        for i in reversed(range(len(maps) - len(levels))):
            lateral = decoder.lateral_convs[i](maps[i])
            up = F.interpolate(outs[-1], size=lateral.shape[-2:], mode="bilinear", align_corners=False)
            outs.append(decoder.output_convs[i](lateral + up))
        return decoder.mask_feature(outs[-1]), outs[: decoder.num_outs]


class DeformableAttention(nn.Module):
    """mmcv's `MultiScaleDeformableAttention` of batch-first queries, with the levels' sizes as integers.

    Args:
        attention: the trained module.
    """

    def __init__(self, attention: Any) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self,
        query: Tensor,
        *,
        value: Tensor,
        query_pos: Tensor,
        reference_points: Tensor,
        spatial_shapes: list[tuple[int, int]],
        **unused: Any,
    ) -> Tensor:
        """Attends to a few points of each level; queries and values `[B, Q, C]`."""
        one = self.attention
        heads, points = one.num_heads, one.num_points
        places = query + query_pos
        values = one.value_proj(value).split([height * width for height, width in spatial_shapes], 1)
        offsets = one.sampling_offsets(places).unflatten(2, (heads, len(values), points, 2))
        weights = one.attention_weights(places).unflatten(2, (heads, -1)).softmax(-1)  # [B, Q, heads, L P]
        sampled = []
        for level, (height, width) in enumerate(spatial_shapes):
            x, y = offsets[:, :, :, level].unbind(-1)
            where = reference_points[:, :, None, level, None] + torch.stack([x / width, y / height], -1)
            grid = (2 * where - 1).transpose(1, 2).flatten(0, 1)  # [B heads, Q, P, 2]
            maps = values[level].transpose(1, 2).unflatten(1, (heads, -1)).flatten(0, 1)
            maps = maps.unflatten(2, (height, width))  # [B heads, D, h, w]
            sampled.append(F.grid_sample(maps, grid, align_corners=False))
        weights = weights.transpose(1, 2).flatten(0, 1)[:, None]  # [B heads, 1, Q, L P]
        mixed = (torch.cat(sampled, -1) * weights).sum(-1)  # [B heads, D, Q]
        mixed = mixed.unflatten(0, (-1, heads)).flatten(1, 2).transpose(1, 2)
        return one.output_proj(mixed) + query


def _cell_centres(maps: Tensor) -> Tensor:
    """Centres of a map's cells, x and y in [0, 1], `[h w, 2]`."""
    height, width = maps.shape[-2:]
    y, x = (
        (torch.arange(side, dtype=maps.dtype, device=maps.device) + 0.5) / side for side in (height, width)
    )
    return torch.stack([x.repeat(height), y[:, None].expand(-1, width).flatten()], 1)
