"""K-Net for instance segmentation, as its authors' code does it, registered with mmdet."""

from sp_fast.models.knet.detector import KNet
from sp_fast.models.knet.first_head import ConvKernelHead
from sp_fast.models.knet.iter_head import KernelIterHead
from sp_fast.models.knet.kernel_updator import KernelUpdator
from sp_fast.models.knet.matching import Assignment, BatchedMaskAssigner
from sp_fast.models.knet.outputs import FirstHeadOutput, StageOutput
from sp_fast.models.knet.semantic_fpn import SemanticFPNWrapper
from sp_fast.models.knet.update_head import KernelUpdateHead
from sp_fast.models.targets import Targets

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
