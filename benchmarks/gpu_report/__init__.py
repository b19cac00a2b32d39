"""Builds, tests and measures sp_fast on a GPU, and writes a report: `python benchmarks/gpu_report --help`."""
