"""Tests and benchmarks on a GPU: `make gpu-test`, `make gpu-bench`, `make gpu-sanitize`."""
