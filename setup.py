"""Builds `sp_fast._C`: C++ ops always, CUDA sources where nvcc and a CUDA build of PyTorch are there.

Environment:
    SP_FAST_CUDA          0: no CUDA; 1: CUDA or an error; unset: CUDA where it can be built.
    TORCH_CUDA_ARCH_LIST  architectures, default "8.0;9.0+PTX".
    MAX_JOBS              compiler processes at a time.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from setuptools import find_namespace_packages, setup

ROOT = Path(__file__).resolve().parent


def toolkit_of(nvcc: str) -> tuple[str, int]:
    """The toolkit's folder and major version, as nvcc itself states them (it may be a wrapper script)."""
    dry_run = subprocess.run(
        [nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True, check=True
    )
    top = re.search(r"^#\$ TOP=(.+)$", dry_run.stderr, re.MULTILINE)
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True)
    release = re.search(r"release (\d+)\.", version.stdout)
    if top is None or release is None:
        raise RuntimeError(f"{nvcc} does not say where its toolkit is")
    return str(Path(top.group(1).strip()).resolve()), int(release.group(1))


def cuda_toolkit() -> str | None:
    """Folder of the CUDA toolkit to build with, or None to build without CUDA."""
    wish = os.environ.get("SP_FAST_CUDA", "")
    if wish not in ("", "0", "1"):
        sys.exit(f"SP_FAST_CUDA: expected 0 or 1, got {wish!r}")
    if wish == "0":
        return None
    obstacle = None
    toolkit = None
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which(f"{home}/bin/nvcc" if home else "nvcc")
    if nvcc is None and not home:
        nvcc = shutil.which("/usr/local/cuda/bin/nvcc")
    if torch.version.cuda is None:
        obstacle = f"PyTorch {torch.__version__} is not a CUDA build"
    elif nvcc is None:
        obstacle = f"nvcc was not found in {home + '/bin' if home else 'PATH or /usr/local/cuda/bin'}"
    else:
        toolkit, major = toolkit_of(nvcc)
        if major != int(torch.version.cuda.split(".")[0]):
            obstacle = f"nvcc is of CUDA {major}, PyTorch of CUDA {torch.version.cuda}"
    if obstacle is None:
        return toolkit
    if wish == "1":
        sys.exit(
            f"SP_FAST_CUDA=1, but {obstacle}. Install the CUDA toolkit that fits PyTorch and set CUDA_HOME, "
            "or unset SP_FAST_CUDA to build for the CPU."
        )
    print(f"sp_fast: building for the CPU alone: {obstacle}")
    return None


TOOLKIT = cuda_toolkit()
if TOOLKIT is not None:
    # Read when cpp_extension is imported; its own guess takes a wrapper of nvcc for the toolkit.
    os.environ["CUDA_HOME"] = TOOLKIT
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "8.0;9.0+PTX")

from torch.utils import cpp_extension  # noqa: E402


def system_includes(folders: list[str]) -> list[str]:
    """Options that make folders system folders: searched last, and without warnings."""
    return [option for folder in folders for option in ("-isystem", folder)]


def nvidia_packages() -> list[Path]:
    """Folders of the nvidia-* packages installed beside PyTorch."""
    return sorted(p for p in (Path(torch.__file__).parents[1] / "nvidia").glob("*") if p.is_dir())


def found_at_run_time(folders: list[str]) -> list[str]:
    """Options by which `import sp_fast._C` finds libraries that `import torch` has not loaded yet."""
    return [f"-Wl,-rpath,{folder}" for folder in folders]


def link_with(module, name: str) -> None:
    """Links with a CUDA library: the toolkit's or, where that is bare, the one that PyTorch loads."""
    if name in module.libraries:
        module.libraries.remove(name)
    if not any((Path(folder) / f"lib{name}.so").exists() for folder in module.library_dirs):
        for package in nvidia_packages():
            for library in package.glob(f"lib/lib{name}.so.*"):
                module.extra_link_args += [f"-L{library.parent}", f"-l:{library.name}"]
                module.extra_link_args += found_at_run_time([str(library.parent)])
                return
    module.libraries.append(name)


def files(pattern: str) -> list[str]:
    """Sources, relative to the project."""
    return sorted(str(p.relative_to(ROOT)) for p in ROOT.glob(pattern))


def extension():
    """The extension module."""
    libraries = found_at_run_time(cpp_extension.library_paths())
    cxx_flags = ["-O3", "-g0", "-Wall", "-Wextra", *system_includes(cpp_extension.include_paths())]
    sources = files("csrc/*.cpp")
    if TOOLKIT is None:
        return cpp_extension.CppExtension(
            "sp_fast._C", sources, extra_compile_args={"cxx": cxx_flags}, extra_link_args=libraries
        )

    sources += files("csrc/cuda/*.cpp") + files("csrc/**/*.cu")
    nvcc_flags = ["-O3", *system_includes(cpp_extension.include_paths())]
    if not (Path(TOOLKIT) / "include" / "cusparse.h").exists():
        # ATen's CUDA headers include those of the libraries, which a bare toolkit lacks.
        of_libraries = system_includes([str(p / "include") for p in nvidia_packages()])
        nvcc_flags += of_libraries
        cxx_flags += of_libraries
    module = cpp_extension.CUDAExtension(
        "sp_fast._C",
        sources,
        define_macros=[("SP_FAST_WITH_CUDA", None)],
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args={"cxx": cxx_flags, "nvcc": nvcc_flags},
        extra_link_args=libraries,
    )
    link_with(module, "cudart")
    link_with(module, "cublas")
    return module


setup(
    ext_modules=[extension()],
    cmdclass={"build_ext": cpp_extension.BuildExtension},
    # `find` in pyproject.toml cannot take a package from outside the folder of its parent.
    packages=[*find_namespace_packages(include=["sp_fast*"]), "sp_fast.kernels"],
    package_dir={"sp_fast.kernels": "kernels"},
)
