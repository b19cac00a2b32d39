"""One small adapter per model family: what the pre-trainer has to know of it, and nothing else."""

from sp_fast.models.adapters.base import Adapter, adapter_for
from sp_fast.models.adapters.knet import KNetAdapter

__all__ = ["Adapter", "KNetAdapter", "adapter_for"]
