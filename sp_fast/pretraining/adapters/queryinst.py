"""mmdet's QueryInst: prompts are added to the proposal features; the initial boxes are unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.utils import unpack_gt_instances
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from torch import Tensor

from sp_fast.knet.targets import TARGET_STRIDE
from sp_fast.pretraining.adapters.base import Adapter, Decorate, StageResults
from sp_fast.query_heads.queryinst import Proposals, pooled_maps, run_stage, weighted
from sp_fast.query_heads.targets import BoxTargets, MaskCrops, box_targets, image_sides


class QueryInstAdapter(Adapter, detector="QueryInst"):
    """Adapter of QueryInst; see `Adapter`. Kernels are the object features; `proposal` means after stage 0.

    The last layer of the mask heads has one channel per class, so it counts as a class head.
    """

    class_heads = (r"roi_head\.bbox_head\.\d+\.fc_cls\.", r"roi_head\.mask_head\.\d+\.conv_logits\.")
    initial_kernels = "rpn_head.init_proposal_features.weight"

    @property
    def kernel_channels(self) -> int:
        """C, channels of the proposal features."""
        return self.detector.rpn_head.init_proposal_features.embedding_dim

    def features(self, images: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Computes C2 to C5 and P2 to P5."""
        maps = tuple(self.detector.backbone(images))
        return maps, tuple(self.detector.neck(maps))

    def targets(self, data_samples: Sequence[Any], image_size: tuple[int, int]) -> BoxTargets:
        """See `Adapter.targets`."""
        instances, _, metas = unpack_gt_instances(data_samples)
        return box_targets(instances, metas)

    def targets_from_masks(
        self, masks: Tensor, boxes: Tensor, count: Tensor, data_samples: Sequence[Any]
    ) -> BoxTargets:
        """See `Adapter.targets_from_masks`."""
        size = (masks.shape[2] * TARGET_STRIDE, masks.shape[3] * TARGET_STRIDE)
        sides = image_sides([sample.metainfo for sample in data_samples], boxes)
        labels = torch.zeros_like(boxes[..., 0], dtype=torch.int64)
        crops = [MaskCrops(one >= 0.5, TARGET_STRIDE) for one in masks]
        return BoxTargets(boxes, labels, count, sides, size, crops)

    def loss(
        self, pyramid: tuple[Tensor, ...], targets: BoxTargets, decorate: Decorate, inject: str
    ) -> StageResults:
        """See `Adapter.loss`. Each stage is matched on its own predictions."""
        head, rpn = self.detector.roi_head, self.detector.rpn_head
        boxes = bbox_cxcywh_to_xyxy(rpn.init_proposal_bboxes.weight) * targets.sides  # [B, N, 4]
        kernels = rpn.init_proposal_features.weight  # [N, C]
        kernels = decorate(kernels) if inject == "init" else kernels.expand(len(boxes), -1, -1)  # [B, N, C]
        proposals, maps = Proposals(boxes, kernels), pooled_maps(pyramid)
        losses, stages, assigned = {}, [], []
        for stage in range(head.num_stages):
            result = run_stage(head, stage, maps, proposals, targets)
            losses.update(weighted(head, stage, result.losses))
            proposals = result.proposals
            stages.append(proposals.features)
            assigned.append(result.assigned)
            if stage == 0 and inject == "proposal":
                proposals = proposals._replace(features=decorate(proposals.features))
        return StageResults(losses, torch.stack(stages), torch.stack(assigned))
