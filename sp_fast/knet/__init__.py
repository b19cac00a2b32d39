"""K-Net for instance segmentation, following its authors' code, registered with mmdet."""

import sp_fast.mmcv_bridge  # noqa: F401  (provides the ops that mmdet imports)

# isort: split
from sp_fast.knet.detector import KNet
from sp_fast.knet.first_head import ConvKernelHead
from sp_fast.knet.iter_head import KernelIterHead
from sp_fast.knet.kernel_updator import KernelUpdator
from sp_fast.knet.matching import Assignment, BatchedMaskAssigner
from sp_fast.knet.outputs import FirstHeadOutput, StageOutput
from sp_fast.knet.semantic_fpn import SemanticFPNWrapper
from sp_fast.knet.targets import Targets
from sp_fast.knet.update_head import KernelUpdateHead

__all__ = [
    "Assignment",
    "BatchedMaskAssigner",
    "ConvKernelHead",
    "FirstHeadOutput",
    "KNet",
    "KernelIterHead",
    "KernelUpdateHead",
    "KernelUpdator",
    "SemanticFPNWrapper",
    "StageOutput",
    "Targets",
]
