"""Where the report runs: the device, the tools, and the packages that are missing."""

from __future__ import annotations

import importlib.machinery
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"

# What tests and peers import beside PyTorch: module -> package.
MODULES = {
    "mmdet": "mmdet",
    "mmengine": "mmengine",
    "mmcv": "mmcv-lite",
    "pycocotools": "pycocotools",
    "shapely": "shapely",
    "terminaltables": "terminaltables",
    "addict": "addict",
    "yapf": "yapf",
    "platformdirs": "platformdirs",
    "termcolor": "termcolor",
    "typer": "typer",
    "rich": "rich",
    "safetensors": "safetensors",
    "scipy": "scipy",
    "matplotlib": "matplotlib",
    "cv2": "opencv-python",
    "torchvision": "torchvision",
    "pytest": "pytest",
    "xdist": "pytest-xdist",
    "hypothesis": "hypothesis",
    "expecttest": "expecttest",
}

PROBE = """
import json, torch
found = {"torch": torch.__version__, "torch_cuda": torch.version.cuda, "gpu": None}
try:
    import triton
    found["triton"] = triton.__version__
except ImportError:
    pass
if torch.cuda.is_available():
    device = torch.cuda.get_device_properties(0)
    found |= {
        "gpu": device.name,
        "capability": f"{device.major}.{device.minor}",
        "memory_bytes": device.total_memory,
        "multiprocessors": device.multi_processor_count,
    }
    torch.ones(1, device="cuda").add_(1).item()
print(json.dumps(found))
"""


def probe(limit: float = 120) -> dict[str, Any]:
    """PyTorch's and the device's versions, asked in another process; "gpu" is None where there is none."""
    try:
        done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"gpu": None, "error": f"PyTorch did not answer within {limit:g} s"}
    if done.returncode:
        return {"gpu": None, "error": (done.stderr.strip().splitlines() or ["no output"])[-1]}
    found = json.loads(done.stdout.strip().splitlines()[-1])
    found["python"] = sys.version.split()[0]
    found["driver"] = driver_version()
    found["nvcc"] = nvcc_version()
    return found


def _first_line(command: list[str]) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = done.stdout.strip().splitlines()
    return lines[0].strip() if not done.returncode and lines else None


def driver_version() -> str | None:
    """Version of the driver, of nvidia-smi."""
    return _first_line(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"])


def nvcc_version() -> str | None:
    """Version of the CUDA compiler that builds the extension."""
    nvcc = find_tool("nvcc")
    if nvcc is None:
        return None
    try:
        text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return None
    version = re.search(r"\bV([\d.]+)", text)
    return version.group(1) if version else None


def commit() -> str | None:
    """The commit that is checked out, where this is a clone."""
    return _first_line(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"])


def find_tool(name: str) -> str | None:
    """Path of a program of the CUDA toolkit: on PATH or in the toolkit's folder."""
    folders = []
    for home in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        if home:
            folders += [f"{home}/bin", f"{home}/{name}"]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(folders))


def missing(search: list[str] | None = None) -> dict[str, str]:
    """Modules that cannot be imported, and their packages; `search`: folders beside sys.path."""
    finder = importlib.machinery.PathFinder()
    return {
        module: package
        for module, package in MODULES.items()
        if importlib.util.find_spec(module) is None and finder.find_spec(module, search or []) is None
    }


def wheels_wanted(folder: Path) -> list[Path]:
    """The wheels of packages that are not installed."""
    wanted = []
    for wheel in sorted(folder.glob("*.whl")):
        try:
            importlib.metadata.version(wheel.name.split("-")[0])
        except importlib.metadata.PackageNotFoundError:
            wanted.append(wheel)
    return wanted


def install_wheels(folder: str | None, site: Path) -> str:
    """Install into `site` what is missing here and is in `folder`, without a network; says what it did."""
    if not folder:
        return "SP_FAST_WHEELS is not set"
    if not Path(folder).is_dir():
        return f"SP_FAST_WHEELS names {folder}, which is no folder"
    wheels = wheels_wanted(Path(folder))
    if not wheels:
        return f"nothing in {folder} was missing"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    done = subprocess.run(
        [*command, "--disable-pip-version-check", "--upgrade", "--target", str(site), *map(str, wheels)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        return "pip failed: " + (done.stderr.strip().splitlines() or ["no output"])[-1]
    return f"{len(wheels)} packages from {folder}"


def make_site(site: Path) -> None:
    """A folder for PYTHONPATH whose .pth files count, so that an editable install works from there."""
    site.mkdir(parents=True, exist_ok=True)
    (site / "sitecustomize.py").write_text(f"import site\n\nsite.addsitedir({str(site)!r})\n")


def variables(site: Path, base: Mapping[str, str] | None = None) -> dict[str, str]:
    """Environment of the parts."""
    of = dict(os.environ if base is None else base)
    paths = [str(site), str(ROOT), str(BENCHMARKS), *filter(None, [of.get("PYTHONPATH")])]
    return {**of, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
