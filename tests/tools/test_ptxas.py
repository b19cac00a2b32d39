"""Output of the compiler for the CUDA sources: no warnings, no spills, wide accesses. Needs no GPU."""

import re

import pytest

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
def kernels():
    """Every kernel of csrc/cuda, compiled once."""
    try:
        ptxas.find_nvcc()
        ptxas.find_cuobjdump()
        ptxas.demangle(["main"])
    except ptxas.ToolMissing as missing:
        pytest.skip(f"needs CUDA's compiler: {missing}")
    return ptxas.compile_all()


def test_compile_for_every_architecture_without_warnings(kernels):
    compiled = {(k.source, k.name): set() for k in kernels}
    for k in kernels:
        compiled[k.source, k.name].add(k.architecture)
    assert compiled
    assert all(architectures == set(ptxas.ARCHITECTURES) for architectures in compiled.values())


def test_no_kernel_spills(kernels):
    assert not [k for k in kernels if k.spill]


@pytest.mark.parametrize("name", WIDE)
def test_accesses_of_16_bytes(kernels, name):
    instances = [k for k in kernels if k.name.split("<")[0] == name or re.fullmatch(name, k.name)]
    assert instances, f"no kernel is called {name}"
    for kernel in instances:
        for kind in WIDE[name]:
            assert getattr(kernel, kind) > 0, kernel


def test_recorded_resources_are_up_to_date(kernels):
    recorded = ptxas.RESULT.read_text()
    version = ptxas.nvcc_version(ptxas.find_nvcc())
    if version != ptxas.recorded_version(recorded):
        pytest.skip(f"recorded with nvcc {ptxas.recorded_version(recorded)}, here is {version}")
    assert ptxas.cuda_part(recorded) == ptxas.render(kernels, version), "run: make ptxas"


def test_a_warning_is_an_error(kernels, tmp_path):
    source = tmp_path / "warns.cu"
    source.write_text("__global__ void warns(float* x) { int unused = 3; x[0] = 1; }")
    with pytest.raises(ptxas.CompilerError, match="unused"):
        ptxas.compile_source(source, tmp_path)


def test_spills_and_wide_accesses_are_seen(kernels, tmp_path):
    source = tmp_path / "spills.cu"
    source.write_text(
        "template <int N> __global__ __launch_bounds__(1024, 2) void spills(const float4* x, float4* y) {\n"
        "    float4 a[N];\n"
        "    for (int i = 0; i < N; ++i) a[i] = x[i * 1024 + threadIdx.x];\n"
        "    __syncthreads();\n"
        "    for (int i = 0; i < N; ++i) y[(N - i) * 1024 + threadIdx.x] = a[i];\n"
        "}\n"
        "template __global__ void spills<24>(const float4*, float4*);\n"
    )
    found = ptxas.compile_source(source, tmp_path)
    assert [k.name for k in found] == ["spills<24>"] * 2
    assert all(k.spill > 0 and k.loads >= 24 and k.stores >= 24 for k in found)


def test_output_of_ptxas_is_parsed():
    text = """
ptxas info    : Compiling entry function '_Z1aPf' for 'sm_80'
ptxas info    : Function properties for _Z1aPf
    16 bytes stack frame, 4 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 4096 bytes smem, 360 bytes cmem[0]
ptxas info    : Function properties for _Z6helperv
    0 bytes stack frame, 0 bytes spill stores, 2 bytes spill loads
ptxas info    : Compiling entry function '_Z1aPf' for 'sm_90'
ptxas info    : Function properties for _Z1aPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers
"""
    assert ptxas.parse_resources(text) == {
        ("_Z1aPf", "80"): dict(registers=255, spill=12, stack=16, shared=4096),
        ("_Z6helperv", "80"): dict(registers=0, spill=2, stack=0, shared=0),
        ("_Z1aPf", "90"): dict(registers=12, spill=0, stack=0, shared=0),
    }


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
