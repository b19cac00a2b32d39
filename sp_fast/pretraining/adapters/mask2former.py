"""mmdet's Mask2Former: prompts are added to the query features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sp_fast.knet.targets import Targets
from sp_fast.pretraining.adapters.base import Adapter, Decorate, StageResults
from sp_fast.query_heads.mask2former import layer_losses
from sp_fast.query_heads.pixel_decoder import decode_pixels
from sp_fast.query_heads.targets import mask_targets


class Mask2FormerAdapter(Adapter, detector="Mask2Former"):
    """Adapter of Mask2Former; see `Adapter`. Kernels are the queries; `proposal` means after the first layer.

    The pyramid consists of the pixel decoder's maps: mask features at stride 4, then the memories at strides
    8, 16 and 32.
    """

    class_heads = (r"panoptic_head\.cls_embed\.",)
    initial_kernels = "panoptic_head.query_feat.weight"

    @property
    def kernel_channels(self) -> int:
        """C, channels of the query features."""
        return self.detector.panoptic_head.query_feat.embedding_dim

    def features(self, images: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Computes C2 to C5 and the maps of the pixel decoder."""
        maps = tuple(self.detector.backbone(images))
        inputs = self.detector.neck(maps) if self.detector.with_neck else maps
        mask_features, memories = decode_pixels(self.detector.panoptic_head.pixel_decoder, list(inputs))
        return maps, (mask_features, *reversed(memories))

    def targets(self, data_samples: Sequence[Any], image_size: tuple[int, int]) -> Targets:
        """See `Adapter.targets`; raises ValueError if masks are not padded to the size of the images."""
        for i, sample in enumerate(data_samples):
            masks = sample.gt_instances.masks
            if (masks.height, masks.width) != tuple(image_size):
                raise ValueError(
                    f"data_samples[{i}]: expected masks of the padded {image_size[0]} x {image_size[1]}, got "
                    f"{masks.height} x {masks.width}; set data_preprocessor.pad_mask=True"
                )
        return mask_targets([sample.gt_instances for sample in data_samples])

    def targets_from_masks(
        self, masks: Tensor, boxes: Tensor, count: Tensor, data_samples: Sequence[Any]
    ) -> Targets:
        """See `Adapter.targets_from_masks`."""
        return Targets((masks >= 0.5).float(), torch.zeros_like(masks[..., 0, 0], dtype=torch.int64), count)

    def loss(
        self, pyramid: tuple[Tensor, ...], targets: Targets, decorate: Decorate, inject: str
    ) -> StageResults:
        """See `Adapter.loss`. Each layer is matched on its own predictions, at random points."""
        classes, masks, kernels = self._decode(pyramid, decorate, inject)
        losses, assigned = layer_losses(self.detector.panoptic_head, classes, masks, targets)
        return StageResults(losses, torch.stack(kernels), assigned[1:])  # without the initial queries'

    def _decode(
        self, pyramid: tuple[Tensor, ...], decorate: Decorate, inject: str
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Runs Mask2FormerHead.forward after its pixel decoder, with separate queries per image.

        Returns:
            Class and mask logits of the initial queries and of every layer; the queries after every layer.
        """
        head = self.detector.panoptic_head
        mask_features, memories = pyramid[0], pyramid[:0:-1]  # coarsest first
        batch, levels = len(mask_features), head.num_transformer_feat_level
        inputs, positions = [], []
        for i, memory in enumerate(memories[:levels]):
            projected = head.decoder_input_projs[i](memory).flatten(2).permute(0, 2, 1)  # [B, h w, C]
            inputs.append(projected + head.level_embed.weight[i].view(1, 1, -1))
            nothing = memory.new_zeros((batch, *memory.shape[-2:]), dtype=torch.bool)
            positions.append(head.decoder_positional_encoding(nothing).flatten(2).permute(0, 2, 1))
        query = head.query_feat.weight  # [N, C]
        query = decorate(query) if inject == "init" else query.expand(batch, -1, -1)  # [B, N, C]
        query_pos = head.query_embed.weight.expand(batch, -1, -1)
        size = memories[0].shape[-2:]
        outputs, queries = [head._forward_head(query, mask_features, size)], []
        for i, layer in enumerate(head.transformer_decoder.layers):
            hidden = outputs[-1][2]
            hidden = hidden & ~hidden.all(-1, keepdim=True)  # an empty mask hides nothing
            query = layer(
                query=query,
                key=inputs[i % levels],
                value=inputs[i % levels],
                query_pos=query_pos,
                key_pos=positions[i % levels],
                cross_attn_mask=hidden,
                query_key_padding_mask=None,
                key_padding_mask=None,
            )
            queries.append(query)
            size = memories[(i + 1) % levels].shape[-2:]
            outputs.append(head._forward_head(query, mask_features, size))
            if i == 0 and inject == "proposal":
                query = decorate(query)
        return [one[0] for one in outputs], [one[1] for one in outputs], queries
