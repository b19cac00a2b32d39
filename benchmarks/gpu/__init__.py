"""Sp_fast on a GPU: `make gpu-test`, `make gpu-bench`, `make gpu-sanitize`."""
