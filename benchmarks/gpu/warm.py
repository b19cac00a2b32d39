"""Compiles a target's Triton variants in parallel, without a GPU: `python -m benchmarks.gpu.warm bench 90`.

Variants that are not listed here are compiled when they are first used.
"""

from __future__ import annotations

import itertools
import os
import sys
from concurrent.futures import ProcessPoolExecutor

import torch

from tools.triton_resources import compiled, launches

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
# Data types, channels, and (images, kernels, prompts) of each target.
VARIANTS: dict[str, tuple[list[torch.dtype], list[int], list[tuple[int, int, int]]]] = {
    "test": ([F32, F16, BF16], [1, 63, 72, 256, 300], [(2, 1, 1), (2, 33, 17), (2, 100, 17), (2, 333, 300)]),
    "bench": ([F32], [256], [(12, 100, 20)]),
    "sanitize": ([F32, BF16], [24, 67], [(2, 1, 1), (2, 33, 17)]),
    "dry run": ([F32], [24], [(2, 3, 3)]),
}


def compile_step(architecture: int, dtype: torch.dtype, channels: int, sizes: tuple, shared: bool) -> int:
    """Compile the launches of one training step and return their number."""
    images, kernels, prompts = sizes
    numbers = {"images": images, "kernels": kernels, "prompts": prompts}
    step = launches(dtype, channels=channels, shared=shared, **numbers).values()
    return len([compiled(launch, architecture) for launch in step])


if __name__ == "__main__":
    target, architecture = sys.argv[1:]
    tasks = itertools.product([int(architecture)], *VARIANTS[target], [True, False])
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as processes:
        numbers = [task.result() for task in [processes.submit(compile_step, *task) for task in tasks]]
    print(f"{sum(numbers)} launches compiled for {architecture}")
