"""Adapters between the pre-trainer and the model families, one per family."""

from sp_fast.pretraining.adapters.base import (
    Adapter,
    Decorate,
    StageResults,
    adapter_class,
    adapter_for,
    class_heads,
)
from sp_fast.pretraining.adapters.knet import KNetAdapter
from sp_fast.pretraining.adapters.mask2former import Mask2FormerAdapter
from sp_fast.pretraining.adapters.queryinst import QueryInstAdapter

__all__ = [
    "Adapter",
    "Decorate",
    "KNetAdapter",
    "Mask2FormerAdapter",
    "QueryInstAdapter",
    "StageResults",
    "adapter_class",
    "adapter_for",
    "class_heads",
]
