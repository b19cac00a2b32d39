"""The adaptive kernel update of K-Net."""

from __future__ import annotations

import torch
from mmdet.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class KernelUpdator(nn.Module):
    """Updates each kernel with the features gathered under its mask, through two learned gates.

    For gathered features x and kernel k:

        (p_in, p_out) = Linear(x);  (i_in, i_out) = Linear(k);  g = i_in * p_in
        input_gate = sigmoid(LN(Linear(g)));  update_gate = sigmoid(LN(Linear(g)))
        out = ReLU(LN(Linear(update_gate * LN(p_out) + input_gate * LN(i_out))))

    Source: Zhang et al., K-Net: Towards Unified Image Segmentation (NeurIPS 2021), Sec. 3.2, with the
    parameter names of the authors' code.

    Args:
        channels: C, channels of kernels and features.
    """

    def __init__(self, channels: int = 256) -> None:
        super().__init__()
        self.dynamic_layer = nn.Linear(channels, 2 * channels)
        self.input_layer = nn.Linear(channels, 2 * channels)
        self.input_gate = nn.Linear(channels, channels)
        self.update_gate = nn.Linear(channels, channels)
        self.norm_in = nn.LayerNorm(channels)
        self.norm_out = nn.LayerNorm(channels)
        self.input_norm_in = nn.LayerNorm(channels)
        self.input_norm_out = nn.LayerNorm(channels)
        self.fc_layer = nn.Linear(channels, channels)
        self.fc_norm = nn.LayerNorm(channels)

    def forward(self, features: Tensor, kernels: Tensor) -> Tensor:
        """Updates the kernels.

        Args:
            features: `[..., C]`, gathered under the masks of the kernels.
            kernels: `[..., C]`, the kernels to update.

        Returns:
            Updated kernels, fp32 `[..., C]`. They are computed in fp32 even under autocast, because the
            gathered features are sums over thousands of cells and their products overflow fp16.
        """
        with torch.autocast(features.device.type, enabled=False):
            return self._update(features.float(), kernels.float())

    def _update(self, features: Tensor, kernels: Tensor) -> Tensor:
        param_in, param_out = self.dynamic_layer(features).chunk(2, dim=-1)
        input_in, input_out = self.input_layer(kernels).chunk(2, dim=-1)
        gate = input_in * param_in
        input_gate = self.input_norm_in(self.input_gate(gate)).sigmoid()
        update_gate = self.norm_in(self.update_gate(gate)).sigmoid()
        mixed = update_gate * self.norm_out(param_out) + input_gate * self.input_norm_out(input_out)
        return self.fc_norm(self.fc_layer(mixed)).relu()
