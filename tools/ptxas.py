"""Registers, stack, shared memory and 16-byte accesses of every CUDA and Triton kernel, from the compiler.

`python -m tools.ptxas` writes benchmarks/results/ptxas.md. It needs an extension with CUDA
kernels and Triton, but no GPU.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import triton
from sp_fast.kernels.deformable_attention import plan_backward as plan_attention_backward
from sp_fast.kernels.deformable_attention import plan_forward as plan_attention
from sp_fast.kernels.focal_loss import plan_backward as plan_focal_backward
from sp_fast.kernels.focal_loss import plan_forward as plan_focal
from sp_fast.kernels.kernel_supervision_loss import plan_backward as plan_loss_backward
from sp_fast.kernels.kernel_supervision_loss import plan_forward as plan_loss
from sp_fast.kernels.launch import DTYPES, Launch
from sp_fast.kernels.mask_sums import plan_overlaps, plan_pairs, plan_pairs_backward
from sp_fast.kernels.match_prompts import plan_backward as plan_match_backward
from sp_fast.kernels.match_prompts import plan_forward as plan_match
from triton.backends.compiler import GPUTarget

from sp_fast.files import write_text

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "ptxas.md"

# Those recorded. With nvcc 12.8, the extension has code for 10.0 and 12.0 too.
ARCHITECTURES = ("80", "90")

# SASS of 16-byte accesses to global memory: into registers, from registers, straight into shared memory.
ACCESSES = {
    "loads": re.compile(r"\bLDG\.E[.\w]*\.128"),
    "stores": re.compile(r"\bSTG\.E[.\w]*\.128"),
    "copies": re.compile(r"\b(LDGSTS\.E[.\w]*\.128|UBLKCP|UTMALDG)"),
}
INTRODUCTION = """\
# Resources of the kernels

Written by `make ptxas` (nvcc {version}) from `cuobjdump --dump-resource-usage -sass`. Stack, in bytes per
thread, includes spilled registers. Shared memory is in bytes per block; for compute capability 9.0, that of
CUDA kernels includes 1,024 bytes that CUDA reserves, and excludes what is sized at launch. Loads into
registers (`LDG.E.128`), stores (`STG.E.128`) and asynchronous copies into shared memory (`LDGSTS.E.128`)
are instructions that access 16 bytes of global memory.
"""


@dataclass
class Kernel:
    """One kernel compiled for one architecture: sizes in bytes, accesses counted as instructions.

    A Triton kernel also has the number of warps per program, and of programs in a training step.
    """

    name: str
    architecture: str
    registers: int
    stack: int
    shared: int
    loads: int = 0
    stores: int = 0
    copies: int = 0
    warps: int | None = None
    programs: int | None = None


def extension() -> tuple[Path, str]:
    """Path of the extension with CUDA kernels for ARCHITECTURES, and the version of nvcc, e.g. "13.0.88".

    Raises:
        RuntimeError: it is not built, or not for these architectures.
    """
    try:
        from sp_fast import _C
    except ImportError as error:
        raise RuntimeError(f"the extension is not built ({error}): run make setup") from None
    cuda = _C.build_info()["cuda"] or {}
    built = [str(one) for one in cuda.get("architectures", ())]
    if not set(built) >= set(ARCHITECTURES):
        raise RuntimeError(
            f"expected an extension built with nvcc for {', '.join(ARCHITECTURES)}, got one for "
            f"{', '.join(built) or 'the CPU only'}"
        )
    return Path(_C.__file__), cuda["compiler"]


def recorded(kernels: Iterable[Kernel]) -> list[Kernel]:
    """The kernels of ARCHITECTURES."""
    return [kernel for kernel in kernels if kernel.architecture in ARCHITECTURES]


def short_name(demangled: str) -> str:
    """Name of a kernel without return type, this project's namespaces and arguments."""
    name = re.sub(r"^void |\(anonymous namespace\)::|sp_fast::(cuda::)?", "", demangled)
    name = re.sub(r"\([A-Za-z_][\w ]*\)(?=-?\d)", "", name)  # casts of template arguments, as in (int)4
    depth = 0
    for place, character in enumerate(name):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            return name[:place]
    return name


def kernels_in(module: Path, architecture: str = "") -> list[Kernel]:
    """List the kernels of the extension or an object file, or of a cubin, which names no architecture."""
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", "-sass", str(module)]
    found: dict[tuple[str, str], Kernel] = {}
    name = ""
    for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines():
        if of := re.match(r"arch = sm_(\w+)", line):
            architecture = of[1]
        elif of := re.search(r"Function (?:: )?([^\s:]+)", line):
            name = of[1]
        elif used := dict(re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", line)):
            registers, stack, shared, local = (int(used[k]) for k in ("REG", "STACK", "SHARED", "LOCAL"))
            readable = short_name(torch._C._demangle(name))
            found[name, architecture] = Kernel(readable, architecture, registers, stack + local, shared)
        else:
            for kind, pattern in ACCESSES.items():
                if pattern.search(line):
                    kernel = found[name, architecture]
                    setattr(kernel, kind, getattr(kernel, kind) + 1)
    return sorted(found.values(), key=lambda k: (k.name, k.architecture))


def prompt_launches(
    dtype: torch.dtype,
    *,
    kernels: int = 100,
    prompts: int = 20,
    channels: int = 256,
    stages: int = 3,
    images: int = 12,
    shared: bool = True,
) -> dict[str, Launch]:
    """Plan the launches of matching and the kernel loss; `shared`: images share the kernels."""
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
        weights, gradients = plan_loss_backward(scalar, updated, p, matched, True, updated, p)
        return {
            "match_prompts forward": plan_match(k, p, count, decorated, index),
            "match_prompts backward": plan_match_backward(
                decorated, index, prompts, k if shared else k[:0], p
            ),
            "kernel_supervision_loss forward": first,
            "kernel_supervision_loss forward, total": second,
            "kernel_supervision_loss backward, weights": weights,
            "kernel_supervision_loss backward": gradients,
        }


def attention_launches(
    dtype: torch.dtype,
    *,
    images: int = 12,
    queries: int = 21950,
    heads: int = 8,
    depth: int = 32,
    points: int = 4,
) -> dict[str, Launch]:
    """Plan the launches of a layer of Mask2Former's encoder, which has as many keys as queries."""
    levels = 3
    with torch.device("meta"):
        value = torch.empty(images, queries, heads, depth, dtype=dtype)
        sizes = torch.empty(levels, 2, dtype=torch.int64)
        weights = torch.empty(images, queries, heads, levels, points)
        locations = torch.empty(*weights.shape, 2)
        inputs, result = (value, sizes, locations, weights), value.flatten(2)
        gradients = value.float(), locations, weights
        return {
            "deformable_attention forward": plan_attention(*inputs, result),
            "deformable_attention backward": plan_attention_backward(result, *inputs, *gradients),
        }


def mask_loss_launches(
    dtype: torch.dtype,
    *,
    images: int = 12,
    kernels: int = 100,
    targets: int = 20,
    classes: int = 80,
    size: tuple[int, int] = (100, 168),
    masks_dtype: torch.dtype = torch.uint8,
) -> dict[str, Launch]:
    """Plan the launches of K-Net's matching costs and mask losses; `size`: height and width of the logits."""
    height, width = size
    with torch.device("meta"):
        logits = torch.empty(images, kernels, height, width, dtype=dtype)
        masks = torch.empty(images, targets, 2 * height, 2 * width, dtype=masks_dtype)
        labels = torch.empty(images, 2 * height, 2 * width, dtype=torch.int64)
        maps = torch.empty(images, classes, height, width, dtype=dtype)
        pairs = torch.empty(images * targets, height, width, dtype=dtype)
        row = torch.empty(images * targets, dtype=torch.int64)
        grads = tuple(torch.empty(images * targets) for _ in range(3))
        wanted = masks.flatten(0, 1)
        return {
            "mask_overlaps": plan_overlaps(logits, masks)[0],
            "mask_pair_sums forward": plan_pairs(pairs, wanted, row)[0],
            "mask_pair_sums backward": plan_pairs_backward(grads, pairs, wanted, row, pairs),
            "upsampled_focal_loss forward": plan_focal(maps, labels, 0.25)[0],
            "upsampled_focal_loss backward": plan_focal_backward(torch.empty(()), maps, labels, 0.25, maps),
        }


def launches(dtype: torch.dtype) -> dict[str, Launch]:
    """Plan every Triton launch of a training step of the three families, on meta tensors."""
    return prompt_launches(dtype) | attention_launches(dtype) | mask_loss_launches(dtype)


def compiled(launch: Launch, architecture: int):
    """Compile and cache a Triton kernel for these arguments, with memory aligned to 16 bytes."""
    # Stands in for Triton's driver, to compile without a device. Triton caches kernels by device.
    driver = mock.Mock()
    driver.get_current_device.return_value = architecture
    driver.get_current_stream.return_value = 0
    driver.get_current_target.return_value = GPUTarget("cuda", architecture, 32)
    with mock.patch.object(triton.runtime.driver, "_active", driver):
        return launch.kernel.warmup(grid=(launch.programs,), num_warps=launch.warps, **launch.arguments)


def triton_kernels(dtypes: Sequence[torch.dtype] = DTYPES) -> list[Kernel]:
    """Compile the Triton kernels of a training step for every dtype and architecture."""
    found = []
    for dtype in dtypes:
        for name, launch in launches(dtype).items():
            for architecture in ARCHITECTURES:
                binary = compiled(launch, int(architecture))
                with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
                    Path(file.name).write_bytes(binary.asm["cubin"])
                    (kernel,) = kernels_in(Path(file.name), architecture)
                kernel.name = f"{name}, {str(dtype).removeprefix('torch.')}"
                kernel.shared, kernel.warps = binary.metadata.shared, launch.warps
                kernel.programs = launch.programs
                found.append(kernel)
    return found


def table(heading: str, kernels: Iterable[Kernel]) -> str:
    """Render kernels as a table, without the columns that they lack."""
    rows = [{k: v for k, v in dataclasses.asdict(kernel).items() if v is not None} for kernel in kernels]
    lines = [f"\n## {heading}\n", f"| {' | '.join(rows[0])} |", "|---|---|" + "---:|" * (len(rows[0]) - 2)]
    for row in rows:
        row["name"], row["architecture"] = f"`{row['name']}`", f"{int(row['architecture']) / 10}"
        lines.append(f"| {' | '.join(map(str, row.values()))} |")
    return "\n".join(lines) + "\n"


def render(kernels: list[Kernel], version: str) -> str:
    """Render the CUDA part of ptxas.md, its beginning."""
    return INTRODUCTION.format(version=version) + table("CUDA", kernels)


def main() -> None:
    try:
        module, version = extension()
    except RuntimeError as error:
        sys.exit(f"ptxas: {error}")
    cuda = render(recorded(kernels_in(module)), version)
    write_text(cuda + table("Triton: the launches of a training step", triton_kernels()), RESULT)
    print(RESULT.relative_to(ROOT))


if __name__ == "__main__":
    main()
