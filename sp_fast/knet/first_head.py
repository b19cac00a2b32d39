"""The first head of K-Net: learned kernels K^0, first masks and proposal kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from mmengine.model import BaseModule, bias_init_with_prob, normal_init
from torch import Tensor, nn

from sp_fast.knet.losses import (
    DICE_LOSS,
    FOCAL_LOSS,
    MASK_LOSS,
    mask_losses,
    paint_segmentation,
    segmentation_loss,
)
from sp_fast.knet.masks import convolve, gather_features
from sp_fast.knet.matching import Assignment
from sp_fast.knet.outputs import FirstHeadOutput
from sp_fast.knet.targets import Targets


@MODELS.register_module()
class ConvKernelHead(BaseModule):
    """Predicts the first masks with learned kernels K^0, and from them the proposal kernels.

        masks_0 = K^0 * loc;  x = loc + sem;  kernels = K^0 + sum over cells of 1[sigmoid(masks_0) > 0.5] x

    Also segments the semantic features; there are no class scores. All maps are at stride 8.

    Source: K-Net (NeurIPS 2021), Sec. 3.1, with the parameter names of the authors' code.

    Args:
        num_proposals: N, the number of kernels.
        in_channels: channels of the localisation and semantic features.
        out_channels: C, channels of the kernels and of x.
        num_classes: K, the number of classes.
        localization_fpn: config of the `SemanticFPNWrapper`.
        norm_cfg: config of the group norm.
        init_std: standard deviation of K^0 before training.
        loss_mask: config of the masks' cross-entropy; default weight 1.
        loss_dice: config of the masks' dice loss; default weight 4.
        loss_seg: config of the segmentation's focal loss; default weight 1.
    """

    def __init__(
        self,
        num_proposals: int = 100,
        in_channels: int = 256,
        out_channels: int = 256,
        num_classes: int = 80,
        localization_fpn: dict | None = None,
        norm_cfg: dict | None = None,
        init_std: float = 1.0,
        loss_mask: dict | None = None,
        loss_dice: dict | None = None,
        loss_seg: dict | None = None,
    ) -> None:
        super().__init__()
        norm = norm_cfg or dict(type="GN", num_groups=32)
        self.num_proposals = num_proposals
        self.num_classes = num_classes
        self.init_std = init_std
        self.localization_fpn = MODELS.build(localization_fpn or dict(type="SemanticFPNWrapper"))
        self.init_kernels = nn.Conv2d(out_channels, num_proposals, 1, bias=False)
        self.conv_seg = nn.Conv2d(out_channels, num_classes, 1)
        self.loc_convs = nn.ModuleList([ConvModule(in_channels, out_channels, 1, norm_cfg=norm)])
        self.seg_convs = nn.ModuleList([ConvModule(in_channels, out_channels, 1, norm_cfg=norm)])
        self.loss_mask = MODELS.build(loss_mask or dict(MASK_LOSS, loss_weight=1.0))
        self.loss_dice = MODELS.build(loss_dice or dict(DICE_LOSS, loss_weight=4.0))
        self.loss_seg = MODELS.build(loss_seg or dict(FOCAL_LOSS, loss_weight=1.0))

    def init_weights(self) -> None:
        """Draws convolutions with std 0.01 and K^0 with `init_std`; the segmentation's prior is 0.01."""
        self.localization_fpn.init_weights()
        for conv in (*self.loc_convs, *self.seg_convs):
            normal_init(conv.conv, std=0.01)
        normal_init(self.conv_seg, std=0.01, bias=bias_init_with_prob(0.01))
        normal_init(self.init_kernels, std=self.init_std)

    def forward(
        self, pyramid: Sequence[Tensor], decorate: Callable[[Tensor], Tensor] | None = None
    ) -> FirstHeadOutput:
        """Predicts the first masks and computes the proposal kernels.

        Args:
            pyramid: P2, P3, P4, P5.
            decorate: function from K^0 `[N, C]` to the kernels `[B, N, C]` that replace it.
        """
        loc, sem = self.localization_fpn(pyramid)
        loc = self.loc_convs[0](loc)  # [B, C, h, w]
        sem = self.seg_convs[0](sem)  # [B, C, h, w]
        kernels = self.init_kernels.weight.flatten(1)  # [N, C]
        kernels = kernels.expand(loc.shape[0], -1, -1) if decorate is None else decorate(kernels)  # [B, N, C]
        mask_logits = convolve(kernels, loc)
        x = loc + sem
        return FirstHeadOutput(kernels + gather_features(mask_logits, x), x, mask_logits, self.conv_seg(sem))

    def loss(self, first: FirstHeadOutput, targets: Targets, assignment: Assignment) -> dict[str, Tensor]:
        """Computes `loss_rpn_mask` and `loss_rpn_dice` of the matched masks, and `loss_rpn_seg`.

        The segmentation target is painted from the matched masks.
        """
        mask, dice = mask_losses(
            self.loss_mask, self.loss_dice, first.mask_logits, targets, assignment, stage=0
        )
        painted = paint_segmentation(targets, assignment, self.num_classes)  # [B, H, W]
        seg = segmentation_loss(self.loss_seg, first.seg_logits, painted)
        return {"loss_rpn_mask": mask, "loss_rpn_dice": dice, "loss_rpn_seg": seg}
