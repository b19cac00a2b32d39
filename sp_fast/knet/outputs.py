"""Outputs of the heads."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class FirstHeadOutput(NamedTuple):
    """Output of a `ConvKernelHead`.

    Attributes:
        kernels: `[B, N, C]`, the proposal kernels: K^0 plus the features gathered under the first masks.
        x: `[B, C, h, w]`, localisation plus semantic features, at stride 8.
        mask_logits: `[B, N, h, w]`, the first masks, at stride 8.
        seg_logits: `[B, K, h, w]`, the semantic segmentation, at stride 8.
    """

    kernels: Tensor
    x: Tensor
    mask_logits: Tensor
    seg_logits: Tensor


class StageOutput(NamedTuple):
    """Output of a `KernelUpdateHead`.

    Attributes:
        cls_logits: `[B, N, K]`, class logits.
        mask_logits: `[B, N, h, w]`, mask logits at stride 8.
        kernels: `[B, N, C]`, the updated kernels.
    """

    cls_logits: Tensor
    mask_logits: Tensor
    kernels: Tensor
