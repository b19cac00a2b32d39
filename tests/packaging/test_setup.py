"""What setup.py decides about CUDA, with a stand-in for nvcc."""

import os
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
NVCC = """#!/bin/sh
case "$1" in
--version) echo "Cuda compilation tools, release {version}, V0" ;;
*) echo "#$ TOP={top}" >&2 ;;
esac
"""

with_cuda = pytest.mark.skipif(torch.version.cuda is None, reason="PyTorch is not a CUDA build")


def toolkit(folder: Path, version: str) -> str:
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(NVCC.format(version=version, top=folder))
    nvcc.chmod(0o755)
    return str(folder)


@pytest.fixture
def script(monkeypatch) -> SimpleNamespace:
    """The functions of setup.py, run without building anything, in an environment without CUDA settings."""
    for name in ("CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("SP_FAST_CUDA", "0")
    monkeypatch.setenv("SP_FAST_EXTENSION", "0")
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    names = SimpleNamespace(**runpy.run_path(str(ROOT / "setup.py")))
    monkeypatch.setenv("SP_FAST_CUDA", "")
    return names


@with_cuda
def test_architectures_that_the_kernels_do_not_compile_for_are_left_out(
    script, tmp_path, monkeypatch, capsys
):
    home = toolkit(tmp_path / "cuda", torch.version.cuda)
    monkeypatch.setenv("CUDA_HOME", home)
    assert script.set_up_cuda() == home
    assert os.environ["TORCH_CUDA_ARCH_LIST"].startswith("8.0;9.0")
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Turing 7.5;8.6 10.0+PTX")
    assert script.set_up_cuda() == home
    assert os.environ["TORCH_CUDA_ARCH_LIST"] == "8.6;10.0+PTX"
    assert "TORCH_CUDA_ARCH_LIST: Turing, 7.5 left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("version", "architectures"),
    [
        ((12, 6), "8.0;9.0+PTX"),
        ((12, 8), "8.0;9.0;10.0;12.0+PTX"),
        ((13, 0), "8.0;9.0;10.0;12.0+PTX"),
    ],
)
def test_machine_code_for_blackwell_where_nvcc_can_make_it(script, tmp_path, version, architectures):
    nvcc = f"{toolkit(tmp_path / 'cuda', '.'.join(map(str, version)))}/bin/nvcc"
    assert script.toolkit_of(nvcc) == (str(tmp_path / "cuda"), version)
    assert script.architectures(version) == architectures


@with_cuda
@pytest.mark.parametrize(
    ("version", "architectures", "obstacle"),
    [
        ("1.0", "8.0", "is CUDA 1"),
        (torch.version.cuda, "7.5", "names no architecture of 8.0 or above"),
        (None, "8.0", "nvcc was not found"),
    ],
)
def test_an_unusable_toolkit_means_a_cpu_build_or_an_error(
    script, tmp_path, monkeypatch, capsys, version, architectures, obstacle
):
    monkeypatch.setenv("CUDA_HOME", toolkit(tmp_path / "cuda", version) if version else str(tmp_path))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", architectures)
    assert script.set_up_cuda() is None
    said = capsys.readouterr().out
    assert "building for the CPU only" in said
    assert obstacle in said
    monkeypatch.setenv("SP_FAST_CUDA", "1")
    with pytest.raises(SystemExit, match=f"SP_FAST_CUDA=1, but .*{obstacle}"):
        script.set_up_cuda()


def test_nvcc_of_pip_is_tried_after_those_of_the_system(script, tmp_path, monkeypatch):
    """In a folder laid out like the nvidia-* packages, beside a module that stands in for PyTorch."""
    system = toolkit(tmp_path / "system", "12.0")
    home = toolkit(tmp_path / "nvidia" / "cu13", "13.0")
    monkeypatch.setenv("PATH", f"{system}/bin", prepend=os.pathsep)
    monkeypatch.setitem(
        script.compilers.__globals__,
        "torch",
        SimpleNamespace(__file__=str(tmp_path / "torch" / "__init__.py")),
    )
    found = script.compilers()
    assert found[0] == f"{system}/bin/nvcc"
    assert found[-1] == f"{home}/bin/nvcc"
    assert script.toolkit_of(found[-1]) == (home, (13, 0))


def test_if_only_the_cuda_sources_fail_the_rest_is_built(script, monkeypatch, capsys):
    def build(command):
        if any(source.endswith(".cu") for source in command.extensions[0].sources):
            raise RuntimeError("no such header")

    monkeypatch.setattr(script.cpp_extension.BuildExtension, "build_extensions", build)
    command = script.BuildExtension.__new__(script.BuildExtension)
    module = script.extension(None)
    module.sources += ["csrc/build_info.cu"]
    module.added = "by setuptools"
    command.extensions = [module]
    command.build_extensions()
    assert "the CUDA sources did not build (RuntimeError: no such header)" in capsys.readouterr().out
    assert command.extensions == [module]
    assert module.added
    assert module.sources == script.extension(None).sources

    module.sources += ["csrc/build_info.cu"]
    monkeypatch.setenv("SP_FAST_CUDA", "1")
    with pytest.raises(SystemExit, match="SP_FAST_CUDA=0 builds for the CPU only"):
        command.build_extensions()


@pytest.mark.parametrize("name", ["SP_FAST_CUDA", "SP_FAST_EXTENSION"])
def test_switches_are_0_or_1(script, monkeypatch, name):
    monkeypatch.setenv(name, "yes")
    with pytest.raises(SystemExit, match=f"{name}: expected 0 or 1, got 'yes'"):
        script.requested(name)
