"""Registers, spills and shared memory of the Triton kernels, compiled without a GPU.

python benchmarks/triton_resources.py
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from sp_fast.kernels.kernel_supervision_loss import plan_backward as plan_loss_backward
from sp_fast.kernels.kernel_supervision_loss import plan_forward as plan_loss
from sp_fast.kernels.launch import DTYPES, Launch
from sp_fast.kernels.match_prompts import plan_backward as plan_match_backward
from sp_fast.kernels.match_prompts import plan_forward as plan_match
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import mangle_type

ARCHITECTURES = (80, 90)


class Row(NamedTuple):
    """What one program of a kernel takes; `name` says dtype too, bytes are of one thread and one program."""

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
) -> dict[str, Launch]:
    """Every launch of a training step, on tensors without memory."""
    with torch.device("meta"):
        k = torch.empty(kernels, channels, dtype=dtype)
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
            "match_prompts backward": plan_match_backward(decorated, index, prompts, k, p),
            "kernel_supervision_loss forward": first,
            "kernel_supervision_loss forward, total": second,
            "kernel_supervision_loss backward": plan_loss_backward(
                scalar, updated, p, matched, True, updated, p
            ),
        }


def compiled(launch: Launch, architecture: int):
    """The kernel as Triton compiles it for these arguments, memory aligned to 16 bytes."""
    fixed = {p.name for p in launch.kernel.params if p.is_constexpr}
    free = {p.name for p in launch.kernel.params if p.do_not_specialize}
    signature, constants, attributes = {}, {}, {}
    for i, name in enumerate(launch.kernel.arg_names):
        value = launch.arguments[name]
        if name in fixed or value is None or (type(value) is int and value == 1 and name not in free):
            signature[name], constants[(i,)] = "constexpr", value
        else:
            signature[name] = mangle_type(value)
            if isinstance(value, torch.Tensor) or (value % 16 == 0 and name not in free):
                attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    target = GPUTarget("cuda", architecture, 32)
    return triton.compile(source, target=target, options={"num_warps": launch.warps})


def resources(dtypes: Sequence[torch.dtype] = DTYPES, **sizes: int) -> list[Row]:
    """Registers, spills and shared memory of every kernel, dtype and architecture."""
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
