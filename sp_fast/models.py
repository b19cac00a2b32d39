"""Registers this package's models, data sets, transforms, metrics and hooks with mmdet, for configs."""

from sp_fast import knet, pretraining, query_heads  # noqa: F401
from sp_fast.mmdet_plugin import (  # noqa: F401
    backbones,
    datasets,
    features,
    hooks,
    inferencer,
    loops,
    metrics,
    paste,
    preprocessor,
    progress,
    samplers,
    step_values,
    transforms,
)
