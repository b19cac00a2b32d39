"""Semantic FPN: merges a feature pyramid into one map."""

from __future__ import annotations

from collections.abc import Sequence

from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from mmengine.model import BaseModule, normal_init
from torch import Tensor, nn

LEVELS = 4


@MODELS.register_module()
class SemanticFPNWrapper(BaseModule):
    """Sums P2-P5 at stride 8 and computes localisation and semantic features from the sum.

    P2 passes one 3 x 3 convolution of stride 2; P3, P4 and P5 pass one, two and three of stride 1, with
    bilinear x2 in between until stride 8. A positional encoding is first added to P5. Two parallel 1 x 1
    convolutions read the sum. Each convolution has group norm and ReLU. Weights start from N(0, 0.01).

    Source: Kirillov et al., Panoptic Feature Pyramid Networks (CVPR 2019), as used by K-Net's authors.

    Args:
        in_channels: channels of the pyramid.
        feat_channels: channels of the sum.
        out_channels: channels of both outputs.
        positional_encoding: config of the encoding added to P5; it must have `in_channels` channels.
        norm_cfg: config of the group norm.
    """

    def __init__(
        self,
        in_channels: int = 256,
        feat_channels: int = 256,
        out_channels: int = 256,
        positional_encoding: dict | None = None,
        norm_cfg: dict | None = None,
    ) -> None:
        super().__init__()
        encoding = positional_encoding or dict(
            type="SinePositionalEncoding", num_feats=in_channels // 2, normalize=True
        )
        norm = norm_cfg or dict(type="GN", num_groups=32)
        self.positional_encoding = MODELS.build(encoding)
        self.convs_all_levels = nn.ModuleList()
        for level in range(LEVELS):
            branch = nn.Sequential()
            for j in range(max(level, 1)):
                channels = in_channels if j == 0 else feat_channels
                stride = 2 if level == 0 else 1
                branch.add_module(
                    f"conv{j}",
                    ConvModule(channels, feat_channels, 3, stride=stride, padding=1, norm_cfg=norm),
                )
                if j < level - 1:
                    branch.add_module(
                        f"upsample{j}", nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
                    )
            self.convs_all_levels.append(branch)
        self.conv_pred = ConvModule(feat_channels, out_channels, 1, norm_cfg=norm)
        self.aux_convs = nn.ModuleList([ConvModule(feat_channels, out_channels, 1, norm_cfg=norm)])

    def init_weights(self) -> None:
        """Initialises the convolutions from N(0, 0.01)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                normal_init(module, std=0.01)

    def forward(self, pyramid: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Computes localisation and semantic features.

        Args:
            pyramid: P2, P3, P4, P5, each `[B, in_channels, H/s, W/s]` for s = 4, 8, 16, 32.

        Returns:
            Two maps `[B, out_channels, H/8, W/8]`.
        """
        if len(pyramid) != LEVELS:
            raise ValueError(
                f"pyramid: expected {LEVELS} maps (P2 to P5), got {len(pyramid)}; set neck.num_outs=4"
            )
        *lower, top = pyramid
        levels = [*lower, top + self.positional_encoding(None, top)]
        merged = sum(branch(level) for branch, level in zip(self.convs_all_levels, levels, strict=True))
        return self.conv_pred(merged), self.aux_convs[0](merged)
