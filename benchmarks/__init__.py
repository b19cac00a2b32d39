"""Benchmarks: ops on the CPU (pytest), ops on a GPU (`python -m benchmarks.gpu`), and a training step."""
