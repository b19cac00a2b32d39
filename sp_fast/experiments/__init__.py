"""Experiments: rows of pseudo labels, pre-training and fine-tuning, run over seeds and compared.

An experiment file defines `experiment`, an :class:`Experiment` or a function that makes one.
"""

from sp_fast.experiments.experiment import Comparison, Experiment, Proposals, Row, Training

__all__ = ["Comparison", "Experiment", "Proposals", "Row", "Training"]
