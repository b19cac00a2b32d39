"""Ops of `mmcv._ext` (mmcv 2.1.0), with the signatures that mmcv's Python code calls.

As in mmcv, most write to tensors that the caller has allocated. float16 and bfloat16 are computed in
float32. Attention is not among them: `sp_fast.mmcv_bridge.deformable` replaces what calls it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torchvision

from sp_fast.mmcv_bridge.boxes import nms
from sp_fast.mmcv_bridge.focal import sigmoid_focal_loss_backward, sigmoid_focal_loss_forward
from sp_fast.mmcv_bridge.roi import roi_align_backward, roi_align_forward

__all__ = [
    "get_compiler_version",
    "get_compiling_cuda_version",
    "nms",
    "roi_align_backward",
    "roi_align_forward",
    "sigmoid_focal_loss_backward",
    "sigmoid_focal_loss_forward",
]


def unavailable_op(name: str) -> Callable[..., Any]:
    """Make an op that raises NotImplementedError when called; the message has its name and a remedy."""
    if name.startswith("_"):
        raise AttributeError(f"module 'mmcv._ext' has no attribute {name!r}")

    def op(*args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError(
            f"mmcv op {name!r} needs mmcv's compiled extension, which is not installed; "
            f"sp_fast's bridge provides only {', '.join(__all__)}. Replace mmcv-lite with a full mmcv 2.1.0 "
            "built for this PyTorch: https://mmcv.readthedocs.io/en/v2.1.0/get_started/build.html"
        )

    op.__name__ = op.__qualname__ = name
    return op


def get_compiler_version() -> str:
    """The compiler's name in mmcv's environment report."""
    return f"none (sp_fast's bridge to torchvision {torchvision.__version__})"


def get_compiling_cuda_version() -> str:
    """The CUDA version of the PyTorch build whose ops are used."""
    return str(torch.version.cuda)
