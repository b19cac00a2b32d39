"""Resources of the kernels: no warnings, no spills, wide accesses, programs that fit. Needs no GPU."""

import importlib
import pkgutil
import re
import shutil
import subprocess

import pytest
import torch

pytest.importorskip("triton.backends.nvidia")

import sp_fast.kernels
from triton.runtime.jit import JITFunction

from tools import ptxas

# Kernels (a name, or a pattern of full names) whose design relies on 16-byte accesses, and the kinds of
# access that every instance must have.
WIDE = {
    "pack_aligned": {"loads"},
    "unpack_aligned": {"stores"},
    "boxes_kernel": {"stores"},
    "keep_masks<0>": {"copies"},
    "copy_cells_kernel": {"stores"},
    "pool_cells": {"copies"},
    "pool_planes": {"copies"},
    "pool_cells_kernel<.*Wide<.*": {"loads", "stores"},
    "cell_factors_kernel<.*Wide<.*": {"loads"},
    "spread_cells<(__half|__nv_bfloat16), 8>": {"stores"},
    "spread_cells<float, 4>": {"stores"},
    "take_kernel<uint4>": {"loads", "stores"},
}


@pytest.fixture(scope="module")
def extension():
    """Path of the extension, and the version of nvcc."""
    try:
        return ptxas.extension()
    except RuntimeError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def kernels(extension):
    """Every CUDA kernel for the recorded architectures."""
    return ptxas.recorded(ptxas.kernels_in(extension[0]))


@pytest.fixture(scope="module")
def triton_kernels(tmp_path_factory):
    """Triton kernels of a training step, compiled with an empty cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        return ptxas.triton_kernels((torch.float32, torch.bfloat16))


def test_every_kernel_is_there_for_every_architecture(kernels):
    compiled = {(k.name, k.architecture) for k in kernels}
    assert compiled == {(k.name, a) for k in kernels for a in ptxas.ARCHITECTURES}


def test_no_kernel_spills(kernels):
    """Spilled registers are on the stack, which no kernel uses for anything else."""
    assert not [k for k in kernels if k.stack]


@pytest.mark.parametrize("name", WIDE)
def test_accesses_of_16_bytes(kernels, name):
    instances = [k for k in kernels if k.name.split("<")[0] == name or re.fullmatch(name, k.name)]
    assert instances, f"no kernel is called {name}"
    for kernel in instances:
        for kind in WIDE[name]:
            assert getattr(kernel, kind) > 0, kernel


def test_recorded_resources_are_up_to_date(kernels, extension):
    recorded, version = ptxas.RESULT.read_text(), extension[1]
    if f"(nvcc {version})" not in recorded:
        pytest.skip(f"not recorded with nvcc {version}")
    cuda, _ = recorded.split("\n## Triton")
    assert cuda == ptxas.render(kernels, version), "run: make ptxas"


def test_spills_and_wide_accesses_are_seen(tmp_path):
    nvcc = shutil.which("nvcc") or pytest.skip("needs nvcc on PATH")
    source = tmp_path / "spills.cu"
    source.write_text(
        "template <int N> __global__ __launch_bounds__(1024, 2) void spills(const float4* x, float4* y) {\n"
        "    float4 a[N];\n"
        "    for (int i = 0; i < N; ++i) a[i] = x[i * 1024 + threadIdx.x];\n"
        "    __syncthreads();\n"
        "    for (int i = 0; i < N; ++i) y[(N - i) * 1024 + threadIdx.x] = a[i];\n"
        "}\n"
        "template __global__ void spills<24>(const float4*, float4*);\n"
        "__global__ void shares(float* y) { __shared__ float a[32]; a[threadIdx.x] = y[threadIdx.x];\n"
        "    __syncthreads(); y[0] = a[threadIdx.x ^ 1]; }\n"
    )
    targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in ptxas.ARCHITECTURES]
    subprocess.run([nvcc, "-c", "-O3", *targets, source, "-o", tmp_path / "spills.o"], check=True)
    found = ptxas.kernels_in(tmp_path / "spills.o")
    assert [(k.name, k.architecture) for k in found] == [
        (name, a) for name in ("shares", "spills<24>") for a in ptxas.ARCHITECTURES
    ]
    assert all(k.stack > 0 and k.registers == 32 and k.loads >= 24 and k.stores >= 24 for k in found[2:])
    assert [(k.stack, k.shared, k.loads) for k in found[:2]] == [(0, 128, 0), (0, 1024 + 128, 0)]


def test_every_triton_kernel_is_listed():
    modules = [
        importlib.import_module(f"sp_fast.kernels.{module.name}")
        for module in pkgutil.iter_modules(sp_fast.kernels.__path__)
    ]
    functions = {
        one.__name__: one.src
        for module in modules
        for one in vars(module).values()
        if isinstance(one, JITFunction)
    }
    sources = "\n".join(functions.values())
    called = {name for name in functions if len(re.findall(rf"\b{name}\(", sources)) > 1}
    listed = {launch.kernel.__name__ for launch in ptxas.launches(torch.float32).values()}
    assert listed == set(functions) - called


def test_no_triton_kernel_spills(triton_kernels):
    assert len(triton_kernels) == 52
    assert not [k for k in triton_kernels if k.stack]


def test_programs_of_a_triton_kernel_run_at_once(triton_kernels):
    """At most two waves on 108 multiprocessors with 64 Ki registers and 2,048 threads each."""
    for kernel in triton_kernels:
        if not kernel.name.startswith(("match_prompts", "kernel_supervision_loss")):  # thousands of programs
            continue
        threads = 32 * kernel.warps
        held = min(65536 // (kernel.registers * threads), 2048 // threads)
        assert kernel.programs <= 2 * 108 * held, kernel


@pytest.mark.parametrize(
    ("demangled", "short"),
    [
        (
            "void sp_fast::cuda::(anonymous namespace)::pool<__nv_bfloat16, 8>(int, float*)",
            "pool<__nv_bfloat16, 8>",
        ),
        ("void sp_fast::(anonymous namespace)::pool<(bool)1, (int)8>(sp_fast::Boxes<float>)", "pool<1, 8>"),
        ("areas(int const*, long)", "areas"),
        ("void sp_fast::cuda::keep<(sp_fast::cuda::Source)2, (unsigned int)4>(int)", "keep<2, 4>"),
    ],
)
def test_short_names(demangled, short):
    assert ptxas.short_name(demangled) == short
