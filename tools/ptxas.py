"""Registers, spills, stack, shared memory and 16-byte accesses of every CUDA kernel, from the compiler.

python -m tools.ptxas            writes benchmarks/results/ptxas.md
python -m tools.ptxas --check    checks whether that file is up to date

Requires nvcc and cuobjdump (from the CUDA toolkit or Triton's package), but no GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "csrc" / "cuda"
# Results of earlier compilations, by a hash of their inputs.
CACHE = ROOT / "build" / "ptxas"
RESULT = ROOT / "benchmarks" / "results" / "ptxas.md"
TRITON_HEADING = "## Triton"

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
    "-Xptxas=-v",
    "-Xcompiler=-Wall,-Wextra,-fPIC",
    "-Werror=all-warnings",
]

# SASS of 16-byte accesses to global memory: into registers, from registers, straight into shared memory.
ACCESSES = {
    "loads": re.compile(r"\bLDG\.E[.\w]*\.128"),
    "stores": re.compile(r"\bSTG\.E[.\w]*\.128"),
    "copies": re.compile(r"\b(LDGSTS\.E[.\w]*\.128|UBLKCP|UTMALDG)"),
}


class ToolMissing(RuntimeError):
    """A required program is missing."""


class CompilerError(RuntimeError):
    """A source does not compile, or gives warnings."""


@dataclass(frozen=True)
class Kernel:
    """One kernel compiled for one architecture: sizes in bytes, accesses counted as instructions."""

    source: str
    name: str
    architecture: str
    registers: int
    spill: int
    stack: int
    shared: int
    loads: int = 0
    stores: int = 0
    copies: int = 0


def find_nvcc() -> str:
    """Find nvcc in CUDA_HOME, on PATH or in /usr/local/cuda."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    found = shutil.which(f"{home}/bin/nvcc") if home else shutil.which("nvcc")
    found = found or shutil.which("/usr/local/cuda/bin/nvcc")
    if found is None:
        raise ToolMissing(f"nvcc was not found in {home + '/bin' if home else 'PATH'} or /usr/local/cuda/bin")
    return found


def find_cuobjdump() -> str:
    """Find cuobjdump on PATH, beside nvcc, or in Triton's package."""
    folders = []
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        folders += [f"{home}/bin"] if home else []
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        folders.append(str(Path(triton.origin).parent / "backends" / "nvidia" / "bin"))
    found = shutil.which("cuobjdump") or shutil.which("cuobjdump", path=os.pathsep.join(folders))
    if found is None:
        raise ToolMissing(f"cuobjdump was not found in PATH, {', '.join(folders)}")
    return found


def nvcc_version(nvcc: str) -> str:
    """Version of nvcc, e.g. "13.0.88"."""
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"\bV(\d+\.\d+\.\d+)", text)
    if version is None:
        raise ToolMissing(f"{nvcc} --version prints no version")
    return version.group(1)


def short_name(demangled: str) -> str:
    """Name of a kernel without return type, this project's namespaces and arguments."""
    name = demangled.replace("(anonymous namespace)::", "")
    name = re.sub(r"^void ", "", name).replace("sp_fast::cuda::", "").replace("sp_fast::", "")
    depth = 0
    for place, character in enumerate(name):
        depth += (character == "<") - (character == ">")
        # A parenthesis inside template arguments is a cast, as in (int)4.
        if character == "(" and depth == 0:
            name = name[:place]
            break
    return re.sub(r"\((?:[A-Za-z_][\w ]*)\)(?=-?\d)", "", name).strip()


def parse_resources(text: str) -> dict[tuple[str, str], dict[str, int]]:
    """Parse the output of ptxas -v to {(mangled name, architecture): registers, spill, stack, shared}."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    entry: tuple[str, str] | None = None
    place: tuple[str, str] | None = None
    for line in text.splitlines():
        if compiling := re.search(r"Compiling entry function '(\S+)' for 'sm_(\w+)'", line):
            entry = place = (compiling.group(1), compiling.group(2))
            found[entry] = dict(registers=0, spill=0, stack=0, shared=0)
        elif properties := re.search(r"Function properties for (\S+)", line):
            assert entry is not None
            place = (properties.group(1), entry[1])
            found.setdefault(place, dict(registers=0, spill=0, stack=0, shared=0))
        elif frame := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes", line):
            assert place is not None
            found[place]["stack"] = int(frame.group(1))
            found[place]["spill"] = int(frame.group(2)) + int(frame.group(3))
        elif used := re.search(r"Used (\d+) registers", line):
            assert entry is not None
            found[entry]["registers"] = int(used.group(1))
            shared = re.search(r"(\d+) bytes smem", line)
            found[entry]["shared"] = int(shared.group(1)) if shared else 0
    return found


def parse_accesses(sass: str) -> dict[tuple[str, str], dict[str, int]]:
    """Parse `cuobjdump -sass` to {(mangled name, architecture): 16-byte loads, stores and copies}."""
    found: dict[tuple[str, str], dict[str, int]] = {}
    architecture = ""
    counts: dict[str, int] = {}
    for line in sass.splitlines():
        if code := re.search(r"code for sm_(\w+)", line):
            architecture = code.group(1)
        elif function := re.search(r"Function : (\S+)", line):
            counts = found.setdefault((function.group(1), architecture), dict.fromkeys(ACCESSES, 0))
        else:
            for kind, pattern in ACCESSES.items():
                if pattern.search(line):
                    counts[kind] += 1
    return found


def demangle(names: list[str]) -> list[str]:
    """Demangle C++ names."""
    tool = shutil.which("c++filt") or shutil.which("cu++filt")
    if tool is None:
        raise ToolMissing("c++filt was not found in PATH (Debian, Ubuntu: binutils)")
    text = subprocess.run([tool], input="\n".join(names), capture_output=True, text=True, check=True).stdout
    return text.splitlines()


def compile_source(source: Path, folder: Path) -> list[Kernel]:
    """Compile one source and list its kernels.

    Raises:
        CompilerError: the source does not compile, or gives warnings.
        ToolMissing: nvcc, cuobjdump or c++filt is missing.
    """
    module = folder / f"{source.stem}.o"
    done = subprocess.run(
        [find_nvcc(), *FLAGS, str(source), "-o", str(module)], capture_output=True, text=True
    )
    # -Werror does not cover the warnings of ptxas.
    if done.returncode or "warning" in done.stderr:
        raise CompilerError(f"{source.name}:\n{done.stderr}")
    resources = parse_resources(done.stderr)
    if not resources:
        return []
    dumped = subprocess.run([find_cuobjdump(), "-sass", str(module)], capture_output=True, text=True)
    if dumped.returncode:
        raise CompilerError(f"cuobjdump {source.name}:\n{dumped.stderr}")
    accesses = parse_accesses(dumped.stdout)
    names = [mangled for mangled, _ in resources]
    kernels = []
    for readable, (key, numbers) in zip(demangle(names), resources.items(), strict=True):
        kernels.append(Kernel(source.name, short_name(readable), key[1], **numbers, **accesses.get(key, {})))
    return sorted(kernels, key=lambda k: (k.name, k.architecture))


def fingerprint(source: Path) -> str:
    """Hash of a source, the headers beside it, and the compiler and its options."""
    digest = hashlib.sha256(f"{nvcc_version(find_nvcc())} {FLAGS} {find_cuobjdump()}".encode())
    headers = [p for p in source.parent.iterdir() if p.suffix in (".h", ".cuh")]
    for path in [source, *sorted(headers), Path(__file__)]:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def compile_once(source: Path) -> list[Kernel]:
    """Like `compile_source`, with results cached by `fingerprint`."""
    kept = CACHE / f"{source.stem}-{fingerprint(source)}.json"
    if kept.exists():
        return [Kernel(**kernel) for kernel in json.loads(kept.read_text())]
    with tempfile.TemporaryDirectory(prefix="sp_fast_ptxas_") as folder:
        kernels = compile_source(source, Path(folder))
    CACHE.mkdir(parents=True, exist_ok=True)
    for old in CACHE.glob(f"{source.stem}-*.json"):
        if len(old.stem) == len(kept.stem):
            old.unlink(missing_ok=True)
    beside = kept.with_suffix(f".{os.getpid()}.partial")
    beside.write_text(json.dumps([dataclasses.asdict(kernel) for kernel in kernels]))
    beside.replace(kept)
    return kernels


def compile_all(sources: list[Path] | None = None) -> list[Kernel]:
    """Compile all sources; the kernels come in a stable order."""
    sources = sorted(SOURCES.glob("*.cu")) if sources is None else sources
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        return [kernel for of in threads.map(compile_once, sources) for kernel in of]


def _dotted(architecture: str) -> str:
    return f"{architecture[:-1]}.{architecture[-1]}"


def render(kernels: list[Kernel], version: str) -> str:
    """Render the CUDA part of ptxas.md."""
    lines = [
        "# Resources of the kernels",
        "",
        f"Written by `make ptxas` (nvcc {version}): `nvcc -Xptxas -v` for compute capability "
        + " and ".join(_dotted(a) for a in ARCHITECTURES)
        + ",",
        "and the 16-byte accesses to global memory that `cuobjdump -sass` shows: loads into registers",
        "(`LDG.E.128`), stores (`STG.E.128`), and asynchronous copies into shared memory (`LDGSTS.E.128`).",
        "Spills, stack and shared memory are in bytes; shared memory is what is fixed at compile time.",
        "Accesses are counted as instructions in the code.",
    ]
    for source in sorted({k.source for k in kernels}):
        lines += [
            "",
            f"## {source}",
            "",
            "| kernel | for | registers | spilled | stack | shared | loads | stores | copies |",
            "|---|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for k in kernels:
            if k.source == source:
                numbers = (k.registers, k.spill, k.stack, k.shared, k.loads, k.stores, k.copies)
                cells = " | ".join(str(n) for n in numbers)
                lines.append(f"| `{k.name}` | {_dotted(k.architecture)} | {cells} |")
    if not kernels:
        lines += ["", "There are no kernels in `csrc/cuda/` yet."]
    return "\n".join(lines) + "\n"


def triton_part() -> str:
    """Render the Triton part of ptxas.md from the output of tools/triton_resources.py."""
    command = [sys.executable, "-m", "tools.triton_resources"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise CompilerError(f"{' '.join(command)}:\n{done.stderr}")
    return triton_table([line.split("\t") for line in done.stdout.strip().splitlines()])


def triton_table(rows: list[list[str]]) -> str:
    """Render rows of kernel, architecture, registers, bytes spilled and shared, warps, programs."""
    lines = [
        TRITON_HEADING,
        "",
        "The launches of a training step; spilled bytes are per thread, shared memory per program.",
        "",
        "| kernel | for | registers | spilled | shared | warps | programs |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for name, architecture, *numbers in rows:
        cells = " | ".join([_dotted(architecture.removeprefix("sm_")), *numbers])
        lines.append(f"| {name} | {cells} |")
    return "\n" + "\n".join(lines) + "\n"


def cuda_part(text: str) -> str:
    """Return ptxas.md without its Triton part."""
    return text.split(f"\n{TRITON_HEADING}")[0]


def recorded_version(text: str) -> str | None:
    """Return the version of nvcc that ptxas.md was made with."""
    version = re.search(r"\(nvcc ([\d.]+)\)", text)
    return version.group(1) if version else None


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="Write nothing; exit with 1 if the file is not up to date"
    )
    options = parser.parse_args(arguments)
    try:
        kernels = compile_all()
        text = render(kernels, nvcc_version(find_nvcc())) + triton_part()
    except (ToolMissing, CompilerError) as error:
        print(f"ptxas: {error}", file=sys.stderr)
        return 2
    for kernel in kernels:
        if kernel.spill:
            where = f"{kernel.source}: {kernel.name} for {_dotted(kernel.architecture)}"
            print(f"{where}: {kernel.spill} bytes spilled")
    if options.check:
        fresh = RESULT.exists() and RESULT.read_text() == text
        print(f"{RESULT.relative_to(ROOT)} is {'' if fresh else 'not '}up to date")
        return 0 if fresh else 1
    RESULT.write_text(text)
    print(f"{RESULT.relative_to(ROOT)}: {len(kernels)} kernels")
    return 0


if __name__ == "__main__":
    sys.exit(main())
