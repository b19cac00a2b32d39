"""Builds `sp_fast._C`: C++ ops where there is a compiler, and CUDA ops where there is nvcc.

Environment:
    SP_FAST_EXTENSION     0: no extension; 1: the extension or an error; unset: the extension if it builds.
    SP_FAST_CUDA          0: no CUDA; 1: CUDA or an error; unset: CUDA if it builds.
    SP_FAST_STRICT        1: warnings of nvcc are errors.
    TORCH_CUDA_ARCH_LIST  architectures, 8.0 or above; default "8.0;9.0;10.0;12.0+PTX", and
                          "8.0;9.0+PTX" where nvcc is older than 12.8.
    MAX_JOBS              number of parallel compiler processes.
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
ARCHITECTURES = "8.0;9.0+PTX"
WITH_BLACKWELL, BLACKWELL_SINCE = "8.0;9.0;10.0;12.0+PTX", (12, 8)
# Entries of TORCH_CUDA_ARCH_LIST below compute capability 8.0, by name or by number.
TOO_OLD = re.compile(r"[1-7]\.|Kepler|Maxwell|Pascal|Volta|Turing")


def requested(name: str) -> bool | None:
    """Whether an environment variable is 1 (True), 0 (False) or unset (None)."""
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        sys.exit(f"{name}: expected 0 or 1, got {value!r}")
    return None if value == "" else value == "1"


def nvidia_packages() -> list[Path]:
    """Folders of the nvidia-* packages installed beside PyTorch."""
    return sorted(p for p in (Path(torch.__file__).parents[1] / "nvidia").glob("*") if p.is_dir())


def compilers() -> list[str]:
    """Every nvcc to try: only that of CUDA_HOME if it is set, else those of PATH, /usr/local/cuda and pip."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    folders = [home] if home else ["/usr/local/cuda", *nvidia_packages()]
    paths = [f"{folder}/bin/nvcc" for folder in folders]
    return [nvcc for nvcc in map(shutil.which, paths if home else ["nvcc", *paths]) if nvcc]


def toolkit_of(nvcc: str) -> tuple[str, tuple[int, int]]:
    """The toolkit's folder and version, as nvcc reports them (it may be a wrapper script)."""
    dry_run = subprocess.run(
        [nvcc, "--dryrun", "-E", "-x", "cu", os.devnull], capture_output=True, text=True, check=False
    )
    top = re.search(r"^#\$ TOP=(.+)$", dry_run.stderr, re.MULTILINE)
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    release = re.search(r"release (\d+)\.(\d+)", version.stdout)
    if top is None or release is None:
        return nvcc, (0, 0)
    return str(Path(top.group(1).strip()).resolve()), (int(release.group(1)), int(release.group(2)))


def architectures(version: tuple[int, int]) -> str:
    """TORCH_CUDA_ARCH_LIST without the architectures that the kernels do not support, or the default."""
    default = WITH_BLACKWELL if version >= BLACKWELL_SINCE else ARCHITECTURES
    names = re.split(r"[;\s]+", os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip() or default)
    kept = ";".join(name for name in names if name and not TOO_OLD.match(name))
    dropped = ", ".join(filter(TOO_OLD.match, names))
    if dropped:
        print(f"sp_fast: TORCH_CUDA_ARCH_LIST: {dropped} left out: the kernels need 8.0 or above")
    return kept


def set_up_cuda() -> str | None:
    """Folder of the CUDA toolkit to build with, or None to build without CUDA."""
    if requested("SP_FAST_CUDA") is False:
        return None
    found = [toolkit_of(nvcc) for nvcc in compilers()]
    wanted = int((torch.version.cuda or "0").split(".")[0])
    fitting = [(folder, version) for folder, version in found if version[0] == wanted]
    names = architectures(fitting[0][1] if fitting else (0, 0))
    if not wanted:
        obstacle = f"PyTorch {torch.__version__} is not a CUDA build"
    elif not found:
        obstacle = "nvcc was not found in CUDA_HOME, or in PATH, /usr/local/cuda and pip's packages"
    elif not fitting:
        versions = ", ".join(f"{folder} is CUDA {version[0] or 'unknown'}" for folder, version in found)
        obstacle = f"PyTorch is built for CUDA {torch.version.cuda} and {versions}"
    elif not names:
        obstacle = "TORCH_CUDA_ARCH_LIST names no architecture of 8.0 or above"
    else:
        # cpp_extension reads CUDA_HOME when it is imported; its guess would mistake a wrapper of nvcc.
        os.environ["CUDA_HOME"] = fitting[0][0]
        os.environ["TORCH_CUDA_ARCH_LIST"] = names
        return fitting[0][0]
    if requested("SP_FAST_CUDA"):
        sys.exit(
            f"SP_FAST_CUDA=1, but {obstacle}. Install the CUDA toolkit that matches PyTorch and set "
            "CUDA_HOME, or unset SP_FAST_CUDA to build for the CPU."
        )
    print(f"sp_fast: building for the CPU only: {obstacle}")
    return None


TOOLKIT = set_up_cuda()

from torch.utils import cpp_extension  # noqa: E402


class BuildExtension(cpp_extension.BuildExtension):
    """Builds the extension; falls back to the CPU or to no extension, unless more was requested."""

    def build_extensions(self) -> None:
        try:
            super().build_extensions()
        except Exception as error:
            with_cuda = any(source.endswith(".cu") for e in self.extensions for source in e.sources)
            what, hint = (
                ("the CUDA sources", "The output above says why; SP_FAST_CUDA=0 builds for the CPU only")
                if with_cuda
                else (
                    "the extension",
                    "Install a C++ compiler (Debian, Ubuntu: apt-get install build-essential) or set CXX",
                )
            )
            message = f"sp_fast: {what} did not build ({type(error).__name__}: {error}). {hint}."
            if requested("SP_FAST_CUDA") or (requested("SP_FAST_EXTENSION") and not with_cuda):
                sys.exit(message)
            if with_cuda:
                print(message, "Continuing with the CPU only.")
                vars(self.extensions[0]).update(vars(extension(None)))  # keeps what setuptools added
                self.build_extensions()
            else:
                print(message, "Continuing without it: the ops will run in plain PyTorch, which is slower.")
                self.extensions = []


def found_at_run_time(folders: list[str]) -> list[str]:
    """Options by which `import sp_fast._C` finds libraries that `import torch` has not loaded yet."""
    return [f"-Wl,-rpath,{folder}" for folder in folders]


def link_with(module, name: str) -> None:
    """Link with a CUDA library: the toolkit's or, if it has none, the one that PyTorch loads."""
    if name in module.libraries:
        module.libraries.remove(name)
    if not any((Path(folder) / f"lib{name}.so").exists() for folder in module.library_dirs):
        for package in nvidia_packages():
            for library in package.glob(f"lib/lib{name}.so.*"):
                module.extra_link_args += [f"-L{library.parent}", f"-l:{library.name}"]
                module.extra_link_args += found_at_run_time([str(library.parent)])
                return
    module.libraries.append(name)


def extension(toolkit: str | None):
    """The extension module, with the CUDA sources where there is a toolkit."""
    headers = cpp_extension.include_paths()
    sources = ["csrc/*.cpp"]
    if toolkit:
        sources += ["csrc/cuda/*.cpp", "csrc/**/*.cu"]
        if not (Path(toolkit) / "include" / "cusparse.h").exists():
            # ATen's CUDA headers include those of the CUDA libraries, which a minimal toolkit lacks.
            headers += [str(package / "include") for package in nvidia_packages()]
    # System headers are searched last, and without warnings.
    system = [option for folder in headers for option in ("-isystem", folder)]
    kind = cpp_extension.CUDAExtension if toolkit else cpp_extension.CppExtension
    module = kind(
        "sp_fast._C",
        [str(path.relative_to(ROOT)) for pattern in sources for path in sorted(ROOT.glob(pattern))],
        define_macros=[("SP_FAST_WITH_CUDA", None)] if toolkit else [],
        include_dirs=[str(ROOT / "csrc")],
        extra_compile_args={
            # Nothing reads the flags of floating-point exceptions; for them, GCC would not vectorise.
            "cxx": ["-O3", "-g0", "-Wall", "-Wextra", "-fno-trapping-math", *system],
            "nvcc": ["-O3", *(["-Werror=all-warnings"] if requested("SP_FAST_STRICT") else []), *system],
        },
        extra_link_args=found_at_run_time(cpp_extension.library_paths()),
    )
    if toolkit:
        link_with(module, "cudart")
        link_with(module, "cublas")
    return module


setup(
    ext_modules=[] if requested("SP_FAST_EXTENSION") is False else [extension(TOOLKIT)],
    cmdclass={"build_ext": BuildExtension},
    # `find` in pyproject.toml cannot include a package from outside its parent's folder.
    packages=[*find_namespace_packages(include=["sp_fast*"]), "sp_fast.kernels"],
    package_dir={"sp_fast.kernels": "kernels"},
)
