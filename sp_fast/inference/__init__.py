"""Predicting with trained models."""

from sp_fast.inference.instances import Instances
from sp_fast.inference.load import load
from sp_fast.inference.model import Model

__all__ = ["Instances", "Model", "load"]
