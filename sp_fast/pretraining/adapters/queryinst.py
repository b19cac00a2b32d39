"""mmdet's QueryInst: prompts are added to the proposal features; the initial boxes are unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmdet.models.utils import unpack_gt_instances
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.structures import InstanceData
from torch import Tensor

from sp_fast.knet.targets import TARGET_STRIDE
from sp_fast.pretraining.adapters.base import Adapter, Decorate, StageResults


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

    def targets(self, data_samples: Sequence[Any], image_size: tuple[int, int]) -> Sequence[Any]:
        """Returns the data samples: QueryInst crops its targets from their masks."""
        return data_samples

    def targets_from_masks(
        self, masks: Tensor, boxes: Tensor, count: Tensor, data_samples: Sequence[Any]
    ) -> list[DetDataSample]:
        """See `Adapter.targets_from_masks`. Takes two transfers, as mmdet crops targets from NumPy arrays."""
        counts, arrays = count.tolist(), (masks >= 0.5).to(torch.uint8).cpu().numpy()
        targets = []
        for i, (sample, found) in enumerate(zip(data_samples, counts, strict=True)):
            instances = InstanceData(
                bboxes=boxes[i, :found],
                labels=count.new_zeros(found),
                masks=QuarterSizeMasks(arrays[i, :found], *arrays.shape[2:]),
            )
            targets.append(DetDataSample(metainfo=sample.metainfo, gt_instances=instances))
        return targets

    def loss(
        self, pyramid: tuple[Tensor, ...], targets: Sequence[Any], decorate: Decorate, inject: str
    ) -> StageResults:
        """See `Adapter.loss`. Each stage is matched on its own predictions."""
        roi_head = self.detector.roi_head
        instances, _, metas = unpack_gt_instances(targets)
        proposals = self.detector.rpn_head.predict(pyramid, targets)
        kernels = torch.stack([one.pop("features") for one in proposals])  # [B, N, C]
        if inject == "init":
            kernels = decorate(kernels)
        losses, stages, assigned = {}, [], []
        for stage, weight in enumerate(roi_head.stage_loss_weights):
            boxes = roi_head.bbox_loss(
                stage=stage,
                x=pyramid,
                results_list=proposals,
                object_feats=kernels,
                batch_img_metas=metas,
                batch_gt_instances=instances,
            )
            masks = roi_head.mask_loss(stage, pyramid, boxes, instances, roi_head.train_cfg[stage])
            for name, value in {**boxes["loss_bbox"], **masks["loss_mask"]}.items():
                losses[f"s{stage}.{name}"] = value * weight if "loss" in name else value
            kernels, proposals = boxes["object_feats"], boxes["results_list"]
            stages.append(kernels)
            assigned.append(_assigned(boxes["sampling_results"], kernels.shape[1]))
            if stage == 0 and inject == "proposal":
                kernels = decorate(kernels)
        return StageResults(losses, torch.stack(stages), torch.stack(assigned))


def _assigned(sampling_results: Sequence[Any], num_kernels: int) -> Tensor:
    """Index of the target of each kernel in one stage's matching, int64 `[B, N]`; -1 for none."""
    index = sampling_results[0].pos_inds.new_full((len(sampling_results), num_kernels), -1)
    for row, result in zip(index, sampling_results, strict=True):
        row[result.pos_inds] = result.pos_assigned_gt_inds
    return index


class QuarterSizeMasks(BitmapMasks):
    """Masks at stride 4 that are cropped with boxes in image pixels.

    Args:
        masks: masks, uint8 `[G, h, w]`.
        height: h, in cells.
        width: w, in cells.
    """

    def __init__(self, masks: np.ndarray, height: int, width: int) -> None:
        super().__init__(masks, height, width)
        # mmdet clips boxes to this size before cropping.
        self.height, self.width = height * TARGET_STRIDE, width * TARGET_STRIDE

    def crop_and_resize(self, bboxes: np.ndarray, *args: Any, **kwargs: Any) -> BitmapMasks:
        """See `BitmapMasks.crop_and_resize`; boxes are in image pixels."""
        return super().crop_and_resize(bboxes / TARGET_STRIDE, *args, **kwargs)
