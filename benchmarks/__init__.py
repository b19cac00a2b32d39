"""Measurements: the ops on the CPU (pytest), on a GPU (`python -m benchmarks.gpu`), and a training step."""
