"""The study's name for the plug-in's CaffeResNet50."""

from sp_fast.mmdet_plugin.backbones import CaffeResNet50

__all__ = ["CaffeResNet50"]
