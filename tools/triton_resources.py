"""Registers, spills and shared memory of the Triton kernels, compiled without a GPU.

python -m tools.triton_resources
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import torch
import triton
from sp_fast.kernels.kernel_supervision_loss import plan_backward as plan_loss_backward
from sp_fast.kernels.kernel_supervision_loss import plan_forward as plan_loss
from sp_fast.kernels.launch import DTYPES, Launch
from sp_fast.kernels.match_prompts import plan_backward as plan_match_backward
from sp_fast.kernels.match_prompts import plan_forward as plan_match
from triton.backends.compiler import GPUTarget

ARCHITECTURES = (80, 90)


class Row(NamedTuple):
    """Resources of a kernel; `name` includes the dtype, spills are per thread, shared memory per program."""

    name: str
    architecture: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    warps: int
    programs: int


def launches(
    dtype: torch.dtype,
    *,
    kernels: int = 100,
    prompts: int = 20,
    channels: int = 256,
    stages: int = 3,
    images: int = 12,
    shared: bool = True,
) -> dict[str, Launch]:
    """Plan every launch of a training step on meta tensors; `shared`: all images share the kernels."""
    with torch.device("meta"):
        k = torch.empty(*([] if shared else [images]), kernels, channels, dtype=dtype)
        p = torch.empty(images, prompts, channels, dtype=dtype)
        count = torch.empty(images, dtype=torch.int64)
        decorated = torch.empty(images, kernels, channels, dtype=dtype)
        index = torch.empty(images, kernels, dtype=torch.int64)
        updated = torch.empty(stages, images, kernels, channels, dtype=dtype)
        matched = torch.empty(stages, images, prompts, dtype=torch.int64)
        scalar = torch.empty(())
        first, second = plan_loss(updated, p, matched, True, scalar)
        return {
            "match_prompts forward": plan_match(k, p, count, decorated, index),
            "match_prompts backward": plan_match_backward(
                decorated, index, prompts, k if shared else k[:0], p
            ),
            "kernel_supervision_loss forward": first,
            "kernel_supervision_loss forward, total": second,
            "kernel_supervision_loss backward": plan_loss_backward(
                scalar, updated, p, matched, True, updated, p
            ),
        }


class Compiler:
    """Stands in for Triton's driver, to compile for an architecture without a device."""

    def __init__(self, architecture: int) -> None:
        self.architecture = architecture

    def get_current_device(self) -> int:
        return self.architecture  # Triton caches compiled kernels by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)


def compiled(launch: Launch, architecture: int):
    """Compile and cache the kernel for these arguments, with memory aligned to 16 bytes."""
    with mock.patch.object(triton.runtime.driver, "_active", Compiler(architecture)):
        return launch.kernel.warmup(grid=(launch.programs,), num_warps=launch.warps, **launch.arguments)


def resources(dtypes: Sequence[torch.dtype] = DTYPES, **sizes: int) -> list[Row]:
    """Compile every kernel for every dtype and architecture, and list the resources."""
    cuobjdump = triton.knobs.nvidia.cuobjdump.path
    rows = []
    for dtype in dtypes:
        for name, launch in launches(dtype, **sizes).items():
            for architecture in ARCHITECTURES:
                kernel = compiled(launch, architecture)
                with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
                    Path(file.name).write_bytes(kernel.asm["cubin"])
                    command = [cuobjdump, "--dump-resource-usage", file.name]
                    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
                found = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
                rows.append(
                    Row(
                        f"{name}, {str(dtype).removeprefix('torch.')}",
                        f"sm_{architecture}",
                        int(found["REG"]),
                        int(found["STACK"]) + int(found["LOCAL"]),
                        kernel.metadata.shared,
                        launch.warps,
                        launch.programs,
                    )
                )
    return rows


if __name__ == "__main__":
    for row in resources():
        print(*row, sep="\t")
