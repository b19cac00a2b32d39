"""One update stage of K-Net: refines kernels and predicts their classes and masks."""

from __future__ import annotations

import torch
from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from mmengine.model import BaseModule, bias_init_with_prob
from torch import Tensor, nn

from sp_fast.knet.kernel_updator import KernelUpdator
from sp_fast.knet.losses import DICE_LOSS, FOCAL_LOSS, MASK_LOSS, mask_losses
from sp_fast.knet.masks import convolve, gather_features
from sp_fast.knet.matching import Assignment
from sp_fast.knet.outputs import StageOutput
from sp_fast.knet.targets import Targets


class SelfAttention(nn.Module):
    """Multi-head self-attention over the kernels of an image, with a residual connection."""

    def __init__(self, channels: int, num_heads: int) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(channels, num_heads, batch_first=True)

    def forward(self, kernels: Tensor) -> Tensor:
        """Maps kernels `[B, N, C]` to `[B, N, C]`."""
        return kernels + self.attn(kernels, kernels, kernels, need_weights=False)[0]


class FeedForward(nn.Module):
    """Linear, ReLU, linear, with a residual connection."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__()
        hidden = nn.Sequential(nn.Linear(channels, hidden_channels), nn.ReLU(inplace=True))
        self.layers = nn.Sequential(hidden, nn.Linear(hidden_channels, channels))

    def forward(self, kernels: Tensor) -> Tensor:
        """Maps kernels `[..., C]` to `[..., C]`."""
        return kernels + self.layers(kernels)


def branch(channels: int) -> nn.Sequential:
    """Linear without bias, layer norm, ReLU: the layers before the class layer and the mask layer."""
    return nn.Sequential(
        nn.Linear(channels, channels, bias=False), nn.LayerNorm(channels), nn.ReLU(inplace=True)
    )


@MODELS.register_module()
class KernelUpdateHead(BaseModule):
    """One update stage of K-Net.

    1 x 1 convolution of x; gathering under the hard masks; `KernelUpdator`; self-attention over kernels and
    layer norm; feed-forward and layer norm. A class branch and a mask branch read the new kernels; the
    output of the mask branch convolves the transformed x. Xavier initialisation.

    Source: K-Net (NeurIPS 2021), Sec. 3.2-3.3, with the parameter names of the authors' code.

    Args:
        num_classes: K, the number of classes.
        in_channels: C, channels of the kernels and of x.
        num_heads: number of attention heads.
        feedforward_channels: hidden channels of the feed-forward layer.
        loss_cls: config of the classes' focal loss; default weight 2.
        loss_mask: config of the masks' cross-entropy; default weight 1.
        loss_dice: config of the masks' dice loss; default weight 4.
    """

    def __init__(
        self,
        num_classes: int = 80,
        in_channels: int = 256,
        num_heads: int = 8,
        feedforward_channels: int = 2048,
        loss_cls: dict | None = None,
        loss_mask: dict | None = None,
        loss_dice: dict | None = None,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.feat_transform = ConvModule(in_channels, in_channels, 1, act_cfg=None)
        self.kernel_update_conv = KernelUpdator(in_channels)
        self.attention = SelfAttention(in_channels, num_heads)
        self.attention_norm = nn.LayerNorm(in_channels)
        self.ffn = FeedForward(in_channels, feedforward_channels)
        self.ffn_norm = nn.LayerNorm(in_channels)
        self.cls_fcs = branch(in_channels)
        self.fc_cls = nn.Linear(in_channels, num_classes)
        self.mask_fcs = branch(in_channels)
        self.fc_mask = nn.Linear(in_channels, in_channels)
        self.loss_cls = MODELS.build(loss_cls or dict(FOCAL_LOSS, loss_weight=2.0))
        self.loss_mask = MODELS.build(loss_mask or dict(MASK_LOSS, loss_weight=1.0))
        self.loss_dice = MODELS.build(loss_dice or dict(DICE_LOSS, loss_weight=4.0))

    def init_weights(self) -> None:
        """Initialises every matrix with uniform Xavier and the class prior to 0.01."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)
        nn.init.constant_(self.fc_cls.bias, bias_init_with_prob(0.01))

    def forward(self, x: Tensor, kernels: Tensor, mask_logits: Tensor) -> StageOutput:
        """Updates the kernels and predicts classes and masks with them.

        Args:
            x: features `[B, C, h, w]`.
            kernels: kernels `[B, N, C]`.
            mask_logits: mask logits `[B, N, h, w]` of these kernels; no gradient flows into them.
        """
        x = self.feat_transform(x)
        kernels = self.kernel_update_conv(gather_features(mask_logits, x), kernels)
        kernels = self.attention_norm(self.attention(kernels))
        kernels = self.ffn_norm(self.ffn(kernels))
        cls_logits = self.fc_cls(self.cls_fcs(kernels))  # [B, N, K]
        mask_logits = convolve(self.fc_mask(self.mask_fcs(kernels)), x)
        return StageOutput(cls_logits, mask_logits, kernels)

    def loss(
        self, output: StageOutput, targets: Targets, assignment: Assignment, stage: int, average: Tensor
    ) -> dict[str, Tensor]:
        """Computes `loss_cls` over all kernels, `loss_mask` and `loss_dice` over the matched ones.

        Args:
            output: output of this stage.
            targets: training targets of the batch.
            assignment: matching of all stages.
            stage: index of this stage.
            average: divisor of the class loss: the number of matched kernels, averaged over the ranks.
        """
        labels = assignment.labels(targets.labels, stage, background=self.num_classes).flatten()  # [B N]
        with torch.autocast(labels.device.type, enabled=False):
            cls = self.loss_cls(output.cls_logits.float().flatten(0, 1), labels, avg_factor=average)
        mask, dice = mask_losses(
            self.loss_mask, self.loss_dice, output.mask_logits, targets, assignment, stage
        )
        return {"loss_cls": cls, "loss_mask": mask, "loss_dice": dice}
