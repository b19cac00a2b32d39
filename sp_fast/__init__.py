"""Saliency-prompt pre-training of query-based instance segmenters.

`sp_fast` and `sp_fast.ops` need only PyTorch. `sp_fast.models` registers the models with mmdet 3.3.0.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
# Public name -> its module, imported on first access.
_NAMES = {
    "SaliencyPromptPretrainer": "sp_fast.pretraining",
    "SaliencyProposer": "sp_fast.proposals",
    "build_backbone": "sp_fast.proposals",
    "load": "sp_fast.inference",
}
_MODULES = ("data", "inference", "knet", "models", "ops", "pretraining", "proposals")
__all__ = ["__version__", *_NAMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"sp_fast.{name}")
    raise AttributeError(f"module 'sp_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
