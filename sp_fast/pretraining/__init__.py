"""Saliency-prompt pre-training: prompts (Eq. 5-8), kernel supervision (Eq. 9), the pre-trainer (Eq. 10)."""

import sp_fast.mmcv_bridge  # noqa: F401  (provides the ops that mmdet imports)

# isort: split
from sp_fast.pretraining.pretrainer import SaliencyPromptPretrainer

__all__ = ["SaliencyPromptPretrainer"]
