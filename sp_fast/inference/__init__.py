"""Predicting with trained models."""

from sp_fast.inference.instances import Instances

__all__ = ["Instances"]
