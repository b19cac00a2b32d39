"""Registers, stack, shared memory and 16-byte accesses of every CUDA and Triton kernel, from the compiler.

`python -m tools.ptxas` writes benchmarks/results/ptxas.md. It requires nvcc and Triton, but no GPU.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import triton
from sp_fast.kernels.kernel_supervision_loss import plan_backward as plan_loss_backward
from sp_fast.kernels.kernel_supervision_loss import plan_forward as plan_loss
from sp_fast.kernels.launch import DTYPES, Launch
from sp_fast.kernels.match_prompts import plan_backward as plan_match_backward
from sp_fast.kernels.match_prompts import plan_forward as plan_match
from triton.backends.compiler import GPUTarget

from sp_fast.files import write_text

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "csrc" / "cuda"
# Compiled sources, by a hash of their inputs.
CACHE = ROOT / "build" / "ptxas"
RESULT = ROOT / "benchmarks" / "results" / "ptxas.md"

ARCHITECTURES = ("80", "90")
# The flags of setup.py and PyTorch's extension builder, with warnings as errors.
FLAGS = [
    "-c",
    "-O3",
    "-std=c++20",
    "-D__CUDA_NO_HALF_OPERATORS__",
    "-D__CUDA_NO_HALF_CONVERSIONS__",
    "-D__CUDA_NO_BFLOAT16_CONVERSIONS__",
    "-D__CUDA_NO_HALF2_OPERATORS__",
    "--expt-relaxed-constexpr",
    *(f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHITECTURES),
    "-Xcompiler=-Wall,-Wextra,-fPIC",
    "-Werror=all-warnings",
]

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


class CompilerError(RuntimeError):
    """A source does not compile, or gives warnings."""


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


def find_nvcc() -> str | None:
    """Find nvcc in CUDA_HOME, on PATH or in /usr/local/cuda."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    found = shutil.which(f"{home}/bin/nvcc") if home else shutil.which("nvcc")
    return found or shutil.which("/usr/local/cuda/bin/nvcc")


def nvcc_version(nvcc: str) -> str:
    """Version of nvcc, e.g. "13.0.88"."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return re.findall(r"\bV(\d+\.\d+\.\d+)", text)[0]


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
    """List the kernels of an object file, or of a cubin, which does not name its architecture."""
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


def compile_source(source: Path, nvcc: str, folder: Path = CACHE) -> list[Kernel]:
    """Compile one source, unless `folder` has its object file, and list its kernels.

    Raises:
        CompilerError: the source does not compile, or gives warnings.
    """
    digest = hashlib.sha256(f"{nvcc_version(nvcc)} {FLAGS}".encode())
    for path in [source, *sorted(source.parent.glob("*.h")), *sorted(source.parent.glob("*.cuh"))]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    module = folder / f"{source.stem}-{digest.hexdigest()[:16]}.o"
    if not module.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = module.with_suffix(f".{os.getpid()}.partial")
        done = subprocess.run([nvcc, *FLAGS, source, "-o", partial], capture_output=True, text=True)
        # -Werror does not cover the warnings of ptxas.
        if done.returncode or "warning" in done.stderr:
            partial.unlink(missing_ok=True)
            raise CompilerError(f"{source.name}:\n{done.stderr}")
        partial.replace(module)
    return kernels_in(module)


def compile_all(nvcc: str) -> dict[str, list[Kernel]]:
    """Compile all CUDA sources: the kernels by the name of their source."""
    sources = sorted(SOURCES.glob("*.cu"))
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        found = threads.map(lambda source: compile_source(source, nvcc), sources)
        return {source.name: kernels for source, kernels in zip(sources, found, strict=True) if kernels}


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
    """Plan every Triton launch of a training step on meta tensors; `shared`: images share the kernels."""
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


def render(kernels: dict[str, list[Kernel]], version: str) -> str:
    """Render the CUDA part of ptxas.md, its beginning."""
    tables = [table(source, of) for source, of in kernels.items()]
    return INTRODUCTION.format(version=version) + "".join(tables)


def main() -> None:
    nvcc = find_nvcc()
    if nvcc is None:
        sys.exit("ptxas: nvcc was not found in CUDA_HOME, PATH or /usr/local/cuda. Install the CUDA toolkit")
    try:
        cuda = render(compile_all(nvcc), nvcc_version(nvcc))
    except CompilerError as error:
        sys.exit(f"ptxas: {error}")
    write_text(cuda + table("Triton: the launches of a training step", triton_kernels()), RESULT)
    print(RESULT.relative_to(ROOT))


if __name__ == "__main__":
    main()
