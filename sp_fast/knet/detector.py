"""K-Net as an mmdet detector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmdet.models.detectors.base import BaseDetector
from mmdet.registry import MODELS, TASK_UTILS
from torch import Tensor

from sp_fast.knet.outputs import FirstHeadOutput, StageOutput
from sp_fast.knet.prediction import instances, kernel_quality, select_top
from sp_fast.knet.targets import Targets, targets_from_samples

SIZE_DIVISOR = 32


@MODELS.register_module()
class KNet(BaseDetector):
    """Instance segmentation with kernels that are updated in stages.

    Source: Zhang et al., K-Net: Towards Unified Image Segmentation (NeurIPS 2021). The parameter names are
    the authors', so their published checkpoints load.

    Args:
        backbone: config of the backbone, which outputs C2 to C5.
        neck: config of the feature pyramid, which outputs P2 to P5.
        rpn_head: config of the first head, a `ConvKernelHead`.
        roi_head: config of the update stages, a `KernelIterHead`.
        train_cfg: dict with `assigner`, the config of the `BatchedMaskAssigner`.
        test_cfg: dict with `max_per_img`, the instances kept per image (default 100), `mask_thr`, the
            probability above which a pixel is inside a mask (default 0.5), and `rerank`, whether scores
            are multiplied by `kernel_quality` (default False).
        data_preprocessor: config of the preprocessor; it must pad to multiples of 32.
        init_cfg: config of the weight initialisation.
    """

    quarter_masks = True  # all that its losses take from the masks is at stride 4

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        rpn_head: dict,
        roi_head: dict,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.backbone = MODELS.build(backbone)
        self.neck = MODELS.build(neck)
        self.rpn_head = MODELS.build(rpn_head)
        self.roi_head = MODELS.build(roi_head)
        assigner = (train_cfg or {}).get("assigner") or dict(type="BatchedMaskAssigner")
        self.assigner = TASK_UTILS.build(assigner)
        test = test_cfg or {}
        self.max_per_img = test.get("max_per_img", 100)
        self.mask_thr = test.get("mask_thr", 0.5)
        self.rerank = test.get("rerank", False)

    def extract_features(self, batch_inputs: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Computes C2-C5 and P2-P5 of images `[B, 3, H, W]`; H and W are multiples of 32."""
        height, width = batch_inputs.shape[-2:]
        if height % SIZE_DIVISOR or width % SIZE_DIVISOR:
            raise ValueError(
                f"batch_inputs: expected height and width to be multiples of {SIZE_DIVISOR}, "
                f"got {height} x {width}; set data_preprocessor.pad_size_divisor={SIZE_DIVISOR}"
            )
        maps = tuple(self.backbone(batch_inputs))
        return maps, tuple(self.neck(maps))

    def extract_feat(self, batch_inputs: Tensor) -> tuple[Tensor, ...]:
        """Computes the neck's maps P2-P5."""
        return self.extract_features(batch_inputs)[1]

    def targets(self, data_samples: Sequence[Any], batch_shape: tuple[int, int]) -> Targets:
        """Pads the data samples' instances to the largest count; see `targets_from_samples`."""
        device = self.rpn_head.init_kernels.weight.device
        return targets_from_samples(data_samples, batch_shape, self.rpn_head.num_classes, device)

    def loss_from(
        self, first: FirstHeadOutput, stages: Sequence[StageOutput], targets: Targets
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Computes all losses from the outputs of the heads.

        The first head and stage 0 are matched on the first masks, without a class cost; stage i is matched
        on the predictions of stage i - 1.

        Args:
            first: output of the first head.
            stages: outputs of the S update stages.
            targets: training targets of the batch.

        Returns:
            The fp32 losses by name, and int64 `[S, B, N]`: the index of each kernel's target at each update
            stage, -1 for none.
        """
        expected = tuple(2 * size for size in first.mask_logits.shape[-2:])
        if tuple(targets.masks.shape[-2:]) != expected:
            raise ValueError(
                f"targets.masks: expected {expected[0]} x {expected[1]} cells (stride 4), got "
                f"{targets.masks.shape[-2]} x {targets.masks.shape[-1]}"
            )
        predictions = [(first.mask_logits, None), *((one.mask_logits, one.cls_logits) for one in stages[:-1])]
        assignment = self.assigner(predictions, targets)
        losses = self.rpn_head.loss(first, targets, assignment)
        losses.update(self.roi_head.loss(stages, targets, assignment))
        return losses, assignment.gt

    def loss(self, batch_inputs: Tensor, batch_data_samples: Sequence[Any]) -> dict[str, Tensor]:
        """Computes the losses of a batch of normalised, padded images `[B, 3, H, W]`."""
        height, width = batch_inputs.shape[-2:]
        first = self.rpn_head(self.extract_feat(batch_inputs))
        targets = self.targets(batch_data_samples, (height, width))
        return self.loss_from(first, self.roi_head(first), targets)[0]

    def predict(self, batch_inputs: Tensor, batch_data_samples: Sequence[Any], rescale: bool = True) -> list:
        """Adds `pred_instances` to the data samples: `bboxes`, `scores`, `labels` and `masks`.

        Masks and boxes are in pixels of the original image or, without `rescale`, of the resized image.
        """
        height, width = batch_inputs.shape[-2:]
        last = self.roi_head(self.rpn_head(self.extract_feat(batch_inputs)))[-1]
        quality = kernel_quality(last.cls_logits, last.mask_logits) if self.rerank else None
        scores, labels, kernels = select_top(last.cls_logits, self.max_per_img, quality)
        results = [
            instances(
                last.mask_logits[i],
                scores[i],
                labels[i],
                kernels[i],
                sample.metainfo,
                (height, width),
                self.mask_thr,
                rescale,
            )
            for i, sample in enumerate(batch_data_samples)
        ]
        return self.add_pred_to_datasample(batch_data_samples, results)

    def _forward(
        self, batch_inputs: Tensor, batch_data_samples: Sequence[Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Computes class logits `[B, N, K]` and mask logits `[B, N, h, w]` of the last stage."""
        last = self.roi_head(self.rpn_head(self.extract_feat(batch_inputs)))[-1]
        return last.cls_logits, last.mask_logits
