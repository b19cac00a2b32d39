"""Evaluating models, results and masks against annotated images."""

from sp_fast.evaluation.report import Report, evaluate, evaluate_results
from sp_fast.evaluation.sources import Detections, predict_detections, read_detections

__all__ = ["Detections", "Report", "evaluate", "evaluate_results", "predict_detections", "read_detections"]
