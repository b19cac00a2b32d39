"""The parts of the report. Each gives a verdict and what it found, within its own time limit."""

from __future__ import annotations

import datetime
import importlib.util
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpu_report.environment import ROOT, find_tool, variables
from gpu_report.files import read_json
from gpu_report.outcomes import of_junit, of_log, of_sanitizer
from gpu_report.running import Outcome, run

IMPORTS = """
import sp_fast.kernels, sp_fast.ops
from sp_fast import _C
from sp_fast.ops.extension import COMPILED
assert COMPILED and _C.build_info()["cuda"], _C.build_info()
print(_C.build_info())
"""


@dataclass
class Part:
    """What came of a part: "passed", "failed", "timed out" or "skipped", why, and its findings."""

    verdict: str
    note: str = ""
    found: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """As it stands in the results."""
        date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        verdict = {"verdict": self.verdict, "note": self.note, "seconds": round(self.seconds, 1)}
        return {**verdict, "date": date, **self.found}


@dataclass
class Place:
    """Where the parts run: a folder for packages, one for logs, the device; `small`: a try without a GPU."""

    site: Path
    logs: Path
    device: dict[str, Any]
    small: bool = False

    @property
    def cores(self) -> int:
        """Processes at a time."""
        return len(os.sched_getaffinity(0))

    def call(
        self, name: str, command: list[str], limit: float, show: Callable[[str], bool], **more: str
    ) -> Outcome:
        """Run a command of Python's with the parts' environment, logged under `name`."""
        return run(
            command,
            limit=limit,
            log=self.logs / f"{name}.log",
            cwd=ROOT,
            env={**variables(self.site), **more},
            show=show,
        )


def _verdict(outcome: Outcome) -> str:
    return "timed out" if outcome.status is None else "failed" if outcome.status else "passed"


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1].strip()[:300]


def build(place: Place, limit: float) -> Part:
    """Build the extension in place against the PyTorch that is there, and import it with sp_fast.kernels."""
    if place.small:
        return Part("skipped", "a dry run builds nothing")
    install = ["-m", "pip", "install", "--verbose", "--no-index", "--no-deps", "--no-build-isolation"]
    install += ["--disable-pip-version-check", "--upgrade", "--target", str(place.site), "--editable", "."]
    outcome = place.call(
        "build",
        [sys.executable, *install],
        limit,
        lambda line: "error" in line.lower(),
        MAX_JOBS=str(place.cores),
        TORCH_CUDA_ARCH_LIST=place.device["capability"],
        SP_FAST_CUDA="1",
    )
    if outcome.status != 0:
        errors = [line.strip() for line in outcome.text.splitlines() if "error:" in line]
        note = errors[0][:300] if errors else _last_line(outcome.text)
        return Part(_verdict(outcome), note, seconds=outcome.seconds)
    imported = place.call("import", [sys.executable, "-c", IMPORTS], 120, lambda line: False)
    note = _last_line(imported.text)
    return Part(_verdict(imported), note, seconds=outcome.seconds + imported.seconds)


def pytest_part(place: Place, name: str, arguments: list[str], limit: float) -> Part:
    """Run pytest on all cores; its findings hold also what a stopped run got to."""
    absent = [module for module in ("pytest", "xdist", "hypothesis") if not _importable(module, place)]
    if absent:
        return Part("skipped", f"needs {', '.join(absent)}, not installed")
    junit = place.logs / f"{name}.xml"
    junit.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-v", "-ra", "-p", "no:cacheprovider", "-n", str(place.cores)]
    if _importable("pytest_timeout", place):
        command += ["--timeout=150"]
    outcome = place.call(
        name,
        [*command, "--dist", "loadgroup", f"--junitxml={junit}", *arguments],
        limit,
        lambda line: line.startswith(("FAILED", "ERROR", "E   ", "=====")),
        OMP_NUM_THREADS="1",
    )
    if outcome.status == 5:
        return Part("skipped", "no tests there", seconds=outcome.seconds)
    found = of_junit(junit) or of_log(outcome.text)
    return Part(_verdict(outcome), _last_line(outcome.text), {"tests": found}, outcome.seconds)


def _importable(module: str, place: Place) -> bool:
    return importlib.util.find_spec(module) is not None or (place.site / module).exists()


FIRST = ("tests/ops", "tests/kernels")


def tests(place: Place, limit: float) -> Part:
    """The ops and the Triton kernels."""
    folders = [folder for folder in FIRST if (ROOT / folder).is_dir()]
    return pytest_part(place, "tests", folders, limit)


def suite(place: Place, limit: float) -> Part:
    """Every other test, where there is time for them."""
    if place.small:
        return Part("skipped", "a dry run leaves it to make test")
    return pytest_part(place, "suite", ["tests", *(f"--ignore={folder}" for folder in FIRST)], limit)


def sanitizer(place: Place, limit: float) -> Part:
    """compute-sanitizer over the small suite: bad accesses, then races in shared memory."""
    if place.small:
        ran = place.call("small_suite", _small_suite("cpu"), limit, lambda line: False)
        return Part(
            _verdict(ran), "the small suite on the CPU, without compute-sanitizer", seconds=ran.seconds
        )
    program = find_tool("compute-sanitizer")
    if program is None:
        return Part("skipped", "compute-sanitizer was not found in PATH or the CUDA toolkit")
    # Compiles Triton's kernels first, so that the tool does not wait for the compiler; and shows what a
    # plain run does.
    plain = place.call("small_suite", _small_suite("cuda"), limit / 3, lambda line: False)
    if plain.status != 0:
        note = f"the small suite by itself: {_last_line(plain.text)}"
        return Part(_verdict(plain), note, seconds=plain.seconds)
    found: dict[str, Any] = {}
    spent = plain.seconds
    for tool in ("memcheck", "racecheck"):
        options = ["--tool", tool, "--error-exitcode", "9", "--target-processes", "application-only"]
        # Without the caching allocator every tensor has bounds of its own.
        more = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} if tool == "memcheck" else {}
        left = (limit - spent) / (2 if tool == "memcheck" else 1)
        outcome = place.call(
            tool,
            [program, *options, "--print-limit", "20", *_small_suite("cuda")],
            left,
            lambda line: line.startswith("=====") and "SUMMARY" in line,
            **more,
        )
        spent += outcome.seconds
        verdict, why = of_sanitizer(outcome.text, outcome.status)
        found[tool] = {"verdict": verdict, "note": why, "seconds": round(outcome.seconds, 1)}
    return Part(worst([of["verdict"] for of in found.values()]), "", {"tools": found}, spent)


def worst(verdicts: list[str]) -> str:
    """The verdict of several: what failed first, then what was not finished, then what was left out."""
    order = ("failed", "timed out", "skipped", "passed")
    return min(verdicts, key=order.index)


def _small_suite(device: str) -> list[str]:
    return [sys.executable, "-m", "gpu_report.small_suite", "--device", device]


def benchmarks(place: Place, limit: float) -> Part:
    """Times of every row, in a process that is started again where an error broke the device for it."""
    out = place.logs / "benchmarks.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "gpu_report.measure_ops", "--out", str(out)]
    spent, begun = 0.0, 0
    while True:
        left = limit - spent
        outcome = place.call(
            "benchmarks",
            [*command, "--seconds", str(max(0.0, left - 10)), *(["--small"] if place.small else [])],
            left,
            lambda line: line.startswith("  "),
        )
        spent += outcome.seconds
        found = read_json(out)
        before, begun = begun, len(found.get("begun", []))
        # Killed or broken by one row: the others are still to be measured.
        if outcome.status in (0, None) or found.get("complete") or begun == before or limit - spent < 20:
            break
        found.setdefault("skipped", []).append(
            {"what": found["begun"][-1] if begun else "benchmarks", "why": _last_line(outcome.text)}
        )
    found.pop("begun", None)
    return Part(_verdict(outcome), "" if outcome.status == 0 else _last_line(outcome.text), found, spent)


# By name, in the order they run, with seconds at most of ten minutes.
PARTS: dict[str, tuple[Callable[[Place, float], Part], float]] = {
    "build": (build, 170),
    "tests": (tests, 150),
    "benchmarks": (benchmarks, 210),
    "sanitizer": (sanitizer, 100),
    "suite": (suite, 180),
}
