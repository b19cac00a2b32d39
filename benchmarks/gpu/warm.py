"""Compiles a target's Triton variants in parallel, without a GPU: `python -m benchmarks.gpu.warm bench 90`.

Variants that are not listed here are compiled when they are first used.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from sp_fast.kernels.launch import Launch

from tools.ptxas import attention_launches, compiled, mask_loss_launches, prompt_launches

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
Plan = Callable[[], dict[str, Launch]]


@dataclass(frozen=True)
class Variants:
    """Sizes of a target's inputs.

    Attributes:
        channels: of kernels and prompts.
        numbers: images, kernels and prompts.
        masks: targets per image, height and width of the logits.
        attention: heads, channels per head, points and queries.
    """

    dtypes: list[torch.dtype]
    channels: list[int]
    numbers: list[tuple[int, int, int]]
    masks: list[tuple[int, int, int]]
    attention: list[tuple[int, int, int, int]]


SMALL_MASKS, SMALL_ATTENTION = [(5, 1, 1), (5, 3, 5), (5, 13, 24)], [(3, 24, 2, 9), (3, 67, 2, 9)]
VARIANTS = {
    "test": Variants(
        [F32, F16, BF16],
        [1, 24, 63, 67, 72, 256, 300],
        [(2, 1, 1), (2, 33, 17), (2, 100, 17), (2, 333, 300)],
        [(35, 13, 21), *SMALL_MASKS],
        [(1, 1, 4, 1), (3, 20, 4, 70), (8, 32, 4, 300), *SMALL_ATTENTION],
    ),
    "bench": Variants([F32, BF16], [256], [(12, 100, 20)], [(20, 100, 167)], [(8, 32, 4, 22050)]),
    "sanitize": Variants([F32, BF16], [24, 67], [(2, 1, 1), (2, 33, 17)], SMALL_MASKS, SMALL_ATTENTION),
    "dry run": Variants([F32], [24], [(2, 3, 3)], [(5, 3, 5)], [(3, 24, 2, 9)]),
}


def plans(of: Variants) -> Iterator[Plan]:
    """What plans the launches of all sizes."""
    for dtype in of.dtypes:
        for (images, kernels, prompts), channels, shared in itertools.product(
            of.numbers, of.channels, (True, False)
        ):
            numbers = {"images": images, "kernels": kernels, "prompts": prompts}
            yield partial(prompt_launches, dtype, channels=channels, shared=shared, **numbers)
        for targets, *size in of.masks:
            yield partial(mask_loss_launches, dtype, images=2, targets=targets, size=tuple(size))
        for heads, depth, points, queries in of.attention:
            numbers = {"heads": heads, "depth": depth, "points": points, "queries": queries}
            yield partial(attention_launches, dtype, **numbers)


def compile_plan(plan: Plan, architecture: int) -> int:
    """Compile the planned launches and return their number."""
    return len([compiled(launch, architecture) for launch in plan().values()])


if __name__ == "__main__":
    target, architecture = sys.argv[1:]
    with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as processes:
        tasks = [processes.submit(compile_plan, plan, int(architecture)) for plan in plans(VARIANTS[target])]
        numbers = [task.result() for task in tasks]
    print(f"{sum(numbers)} launches compiled for {architecture}")
