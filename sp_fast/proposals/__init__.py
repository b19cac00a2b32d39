"""Saliency masks from images: backbones and their weights, the proposer, the store and the scores.

Importing this package needs only PyTorch, torchvision and numpy; `run.propose_folder`, for a whole folder,
also needs Pillow and pycocotools, and scikit-image to refine masks.
"""

from sp_fast.proposals.backbones import BACKBONES, Backbone, backbone_of, build_backbone
from sp_fast.proposals.presets import PRESETS, ProposalOptions
from sp_fast.proposals.proposer import SaliencyProposer
from sp_fast.proposals.selection import Proposals
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
