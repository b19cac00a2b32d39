"""Images to saliency masks: backbones and their weights, the proposer, the store and the scores.

Importing this package needs PyTorch, torchvision and numpy alone; `run.propose_folder`, for a whole folder,
needs Pillow and pycocotools too.
"""

from .backbones import BACKBONES, Backbone, backbone_of, build_backbone
from .presets import PRESETS, ProposalOptions
from .proposer import Proposals, SaliencyProposer
from .weights import WeightsError, WeightsReport, load_backbone_weights

__all__ = [
    "BACKBONES",
    "PRESETS",
    "Backbone",
    "ProposalOptions",
    "Proposals",
    "SaliencyProposer",
    "WeightsError",
    "WeightsReport",
    "backbone_of",
    "build_backbone",
    "load_backbone_weights",
]
