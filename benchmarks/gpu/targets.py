"""The steps of `make gpu-test`, `make gpu-bench` and `make gpu-sanitize`."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import sys
import time
from functools import partial
from pathlib import Path

from benchmarks.gpu.render import read, write
from benchmarks.gpu.steps import FAILED, LEFT_OUT, OUT_OF_TIME, PASSED, ROOT, Place, Step

# Exit status of a process after an error that made the device unusable.
BROKEN = 4
CORES = len(os.sched_getaffinity(0))
CHECK = """
import sp_fast.kernels, sp_fast.ops
from sp_fast import _C
assert _C.build_info()["cuda"], _C.build_info()
print(_C.build_info())
"""
INSTALL = ["-m", "pip", "install", "--disable-pip-version-check", "--no-index", "--no-deps"]
INSTALL += ["--no-build-isolation", "--upgrade", "--target"]
PYTEST = ["-m", "pytest", "-q", "-ra", "-p", "no:cacheprovider"]
SMALL_SUITE = "tests/ops/test_on_gpu_small.py"
# Messages of compute-sanitizer where it cannot work at all.
REFUSALS = ("Device not supported", "Unable to find injection", "Failed to initialize", "Internal Sanitizer")


def judge(status: int | None, text: str) -> tuple[str, str]:
    """Verdict from the exit status, and the last line of the output."""
    last = (text.strip().splitlines() or ["no output"])[-1].strip(" =")[:300]
    return (OUT_OF_TIME if status is None else FAILED if status else PASSED), last


def fingerprint(wheels: list[str], device: dict) -> str:
    """Hash of everything that the extension is built from."""
    digest = hashlib.sha256(json.dumps([sys.version, wheels, device], sort_keys=True).encode())
    for path in [ROOT / "setup.py", *sorted(p for p in (ROOT / "csrc").rglob("*") if p.is_file())]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def build(place: Place, limit: float) -> tuple[str, str]:
    """Build the extension in place and install the wheels of SP_FAST_WHEELS, unless both are up to date."""
    site, stamp = place.work / "site", place.work / "built"
    # Installed packages come first on the path; addsitedir also reads the .pth files of editable installs.
    (place.work / "sitecustomize.py").write_text(f"import site\n\nsite.addsitedir({str(site)!r})\n")
    if place.dry:
        return LEFT_OUT, "a dry run builds nothing"
    wheels = [str(wheel) for wheel in sorted(Path(os.environ.get("SP_FAST_WHEELS", "none")).glob("*.whl"))]
    wanted = fingerprint(wheels, place.device)
    if not stamp.exists() or stamp.read_text() != wanted:
        env = {
            "MAX_JOBS": str(CORES),
            "TORCH_CUDA_ARCH_LIST": place.device["capability"],
            "SP_FAST_CUDA": "1",
        }
        status, text = place.run("build", [*INSTALL, str(site), *wheels, "--editable", "."], limit, **env)
        if status != 0:
            errors = [line.strip()[:300] for line in text.splitlines() if "error:" in line]
            verdict, last = judge(status, text)
            return verdict, errors[0] if errors else last
    verdict, note = judge(*place.run("import", ["-c", CHECK], 60))
    if verdict == PASSED:
        stamp.write_text(wanted)
    return verdict, note


def compile_variants(place: Place, limit: float, target: str) -> tuple[str, str]:
    """Compile Triton's variants on all cores."""
    if importlib.util.find_spec("triton") is None:
        return LEFT_OUT, "Triton is not installed"
    architecture = place.device["capability"].replace(".", "")
    command = ["-m", "benchmarks.gpu.warm", "dry run" if place.dry else target, architecture]
    return judge(*place.run("variants", command, limit))


def run_tests(place: Place, limit: float, paths: list[str], parallel: bool = True) -> tuple[str, str]:
    """Run tests, on all cores if pytest-xdist is installed."""
    spread = ["-n", str(CORES)] if parallel and importlib.util.find_spec("xdist") else []
    return judge(*place.run(Path(paths[0]).stem, [*PYTEST, *spread, *paths], limit, OMP_NUM_THREADS="1"))


def measure(place: Place, limit: float) -> tuple[str, str]:
    """Time every op, in a process that is restarted if an error made the device unusable."""
    end = time.monotonic() + limit
    command = ["-m", "benchmarks.gpu.bench", str(place.results), *(["--dry-run"] if place.dry else [])]
    begun = -1
    while True:
        left = end - time.monotonic()
        status, text = place.run("bench", [*command, "--seconds", f"{max(left - 20, 5):.0f}"], left)
        report = read(place.results)
        found = report["bench"]
        before, begun = begun, len(found["begun"])
        if status in (0, None) or begun == before or end - time.monotonic() < 30:
            break
        if status != BROKEN:  # it crashed, so it could not record this itself
            report["bench"]["left_out"].append(f"{found['begun'][-1]}: {judge(status, text)[1]}")
            write(report, place.results)
    verdict, note = judge(status, text)
    if verdict == PASSED and any(" s were left" in what for what in found["left_out"]):
        verdict = OUT_OF_TIME
    return verdict, f"{len(found['left_out'])} left out" if verdict == PASSED else note


def judge_sanitizer(status: int | None, text: str) -> tuple[str, str]:
    """Verdict of the sanitizer, and the line that explains it."""
    lines = text.splitlines()
    refusal = next((line for line in lines if any(words in line for words in REFUSALS)), None)
    summary = next((line for line in reversed(lines) if "SUMMARY" in line), None)
    verdict, last = judge(status, text)
    ran = re.search(r"\b\d+ passed", text) is not None
    if verdict != OUT_OF_TIME and refusal is not None and not ran:
        return LEFT_OUT, f"compute-sanitizer does not run: {refusal.strip('= ')}"
    clean = summary is not None and re.search(r"SUMMARY: 0 (errors|hazards)", summary) is not None
    return FAILED if verdict == PASSED and not (clean and ran) else verdict, (summary or last).strip("= ")


def sanitize(place: Place, limit: float, tool: str) -> tuple[str, str]:
    """Run the small suite under a tool of compute-sanitizer."""
    toolkit = os.environ.get("CUDA_HOME", "/usr/local/cuda")
    program = shutil.which("compute-sanitizer") or shutil.which(f"{toolkit}/bin/compute-sanitizer")
    if place.dry or program is None:
        return LEFT_OUT, "a dry run has no GPU" if place.dry else "compute-sanitizer was not found"
    options = ["--tool", tool, "--error-exitcode", "9", "--target-processes", "application-only"]
    command = [program, *options, "--print-limit", "20", sys.executable, *PYTEST, SMALL_SUITE]
    # Without the caching allocator every tensor is its own allocation, whose bounds are checked.
    return judge_sanitizer(*place.run(tool, command, limit, PYTORCH_NO_CUDA_MEMORY_CACHING="1"))


def steps(target: str, *further: Step) -> list[Step]:
    """Steps of a target: build and compile, then further steps."""
    return [
        Step("build", build, share=5, vital=True),
        Step("Triton variants", partial(compile_variants, target=target)),
        *further,
    ]


TARGETS = {
    "test": steps(
        "test",
        Step("ops", partial(run_tests, paths=["tests/ops/test_on_gpu.py", SMALL_SUITE]), share=4),
        Step("Triton kernels", partial(run_tests, paths=["tests/kernels", "-k", "not cpu"]), share=2),
        Step("large", partial(run_tests, paths=["tests/ops/test_on_gpu_large.py"], parallel=False), share=3),
    ),
    "bench": steps("bench", Step("times", measure, share=9)),
    "sanitize": steps(
        "sanitize",
        Step("small suite", partial(run_tests, paths=[SMALL_SUITE], parallel=False), 2, vital=True),
        *(Step(tool, partial(sanitize, tool=tool), share=3) for tool in ("memcheck", "racecheck")),
        *(Step(tool, partial(sanitize, tool=tool), share=2) for tool in ("synccheck", "initcheck")),
    ),
}
