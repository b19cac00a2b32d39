"""Evaluating models, results and masks against annotated images."""

from sp_fast.evaluation.report import Report, evaluate
from sp_fast.evaluation.sources import Detections, predict_detections, read_detections

__all__ = ["Detections", "Report", "evaluate", "predict_detections", "read_detections"]
