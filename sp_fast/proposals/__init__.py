"""Images to saliency masks: backbones and their weights, the proposer, the store and the scores.

Importing this package needs PyTorch, torchvision and numpy alone; `run.propose_folder`, for a whole folder,
needs Pillow and pycocotools too.
"""

from sp_fast.proposals.backbones import BACKBONES, Backbone, backbone_of, build_backbone
from sp_fast.proposals.presets import PRESETS, ProposalOptions
from sp_fast.proposals.proposer import Proposals, SaliencyProposer
from sp_fast.weights import WeightsError, WeightsReport, load_backbone_weights

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
