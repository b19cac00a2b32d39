"""Experiments: rows of pseudo labels, pre-training and fine-tuning, run with several seeds and compared.

An experiment file defines `experiment`, an `Experiment` or a function that returns one.
"""

from sp_fast.experiments.experiment import Analysis, Comparison, Experiment, Proposals, Row, Training

__all__ = ["Analysis", "Comparison", "Experiment", "Proposals", "Row", "Training"]
