"""Weights files: read without running their code, recognised by their keys, loaded in full or not at all."""

from sp_fast.weights.loading import (
    WeightsError,
    WeightsReport,
    closest_network,
    load_backbone_weights,
    load_state,
    read_state,
    read_with_state,
)

__all__ = [
    "WeightsError",
    "WeightsReport",
    "closest_network",
    "load_backbone_weights",
    "load_state",
    "read_state",
    "read_with_state",
]
