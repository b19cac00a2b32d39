"""Experiments: rows of pseudo labels, pre-training and fine-tuning, run with several seeds and compared.

An experiment file defines `experiment`, an `Experiment` or a function that returns one.
"""

from sp_fast.experiments.experiment import Analysis, Comparison, Experiment, Proposals, Row, Training
from sp_fast.experiments.figures import Figure

__all__ = ["Analysis", "Comparison", "Experiment", "Figure", "Proposals", "Row", "Training"]
