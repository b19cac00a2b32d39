"""Builds, tests and measures sp_fast on a machine with a GPU: benchmarks/results/<gpu>.json and .md.

No network is used. Every part has a time limit of its own, and the results are written after each, so
that what is done stays when the rest is stopped. Packages that are missing are taken from the folder of
wheels that SP_FAST_WHEELS names; what needs one that is absent is left out by name. With OUT set, the
results and the logs are copied to that folder too.

Examples:
  python3 benchmarks/gpu_report
  SP_FAST_WHEELS=.whl python3 benchmarks/gpu_report
  python3 benchmarks/gpu_report --parts build,benchmarks --minutes 6
  python3 benchmarks/gpu_report --dry-run

Exit status: 0; 1 where the build, a test or the sanitizer failed; 2 without a GPU.
"""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from gpu_report import environment
from gpu_report.costs import FULL, SMALL, Sizes
from gpu_report.files import copy_out, read_json, slug, write_json, write_whole
from gpu_report.parts import PARTS, Place
from gpu_report.render import render
from gpu_report.running import Clock

RESULTS = environment.BENCHMARKS / "results"
# Packages and logs stay here, for a later call with other parts.
WORK = environment.ROOT / "build" / "gpu_report"
# What is left of the others when the time is up is no failure.
TO_THE_END = ("build", "tests", "sanitizer")
# Kept for writing and copying at the end.
RESERVE = 5.0
LOGS = ("tests.log", "suite.log", "memcheck.log", "racecheck.log", "build.log", "benchmarks.log")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="gpu_report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--parts", default=",".join(PARTS), help="which parts, with commas between; default: %(default)s"
    )
    parser.add_argument("--minutes", type=float, default=9.5, help="for everything; default: %(default)s")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder; default: benchmarks/results")
    parser.add_argument(
        "--dry-run", action="store_true", help="try the scripts without a GPU; times are not measured"
    )
    options = parser.parse_args(arguments)
    options.parts = [part.strip() for part in options.parts.split(",") if part.strip()]
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown or not options.parts:
        parser.error(f"--parts: expected some of {', '.join(PARTS)}, got {', '.join(unknown) or 'none'}")
    if options.minutes <= 0:
        parser.error(f"--minutes: expected a number above 0, got {options.minutes:g}")
    return options


def describe(sizes: Sizes) -> str:
    """The sizes in words."""
    (d, h5, w5), (c, h2, w2) = sizes.c5, sizes.p2
    return f"{sizes.images} images; C5 {h5} x {w5} of {d} channels, P2 {h2} x {w2} of {c}"


def limit_of(name: str, left: float) -> float:
    """Seconds that a part may take: its own limit, and no more than there is."""
    return min(PARTS[name][1], left - RESERVE)


def failed(report: dict[str, Any], parts: list[str]) -> bool:
    """Whether one of `parts` failed, or is one that has to come to its end and did not."""
    verdicts = {name: report["parts"][name]["verdict"] for name in parts}
    return "failed" in verdicts.values() or any(verdicts.get(name) == "timed out" for name in TO_THE_END)


class Writer:
    """Keeps the results on disk: JSON and Markdown, and copies in the folder OUT names."""

    def __init__(self, folder: Path, name: str, logs: Path) -> None:
        self.json = folder / f"{name}.json"
        self.markdown = folder / f"{name}.md"
        self.logs = logs

    def write(self, report: dict[str, Any]) -> None:
        """Write all of it."""
        write_json(self.json, report)
        write_whole(self.markdown, render(report))
        copy_out([self.json, self.markdown, *(self.logs / log for log in LOGS)], os.environ.get("OUT"))


def start(device: dict[str, Any], before: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    """A report without parts; those of an earlier one stay where it was made with the same versions."""
    versions = {
        key: device.get(key)
        for key in ("python", "torch", "torch_cuda", "triton", "nvcc", "driver", "capability")
    }
    kept = before.get("parts", {}) if before.get("versions") == versions else {}
    return {
        "gpu": device["gpu"],
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": environment.commit(),
        "versions": versions,
        "images": describe(sizes),
        "missing": [],
        "parts": kept,
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the parts; returns the exit status."""
    options = parse(arguments)
    clock = Clock(options.minutes)
    # Stopped from outside, the parts' processes are stopped too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    device = environment.probe()
    if options.dry_run:
        device["gpu"] = "dry run"
        device.setdefault("capability", "0.0")
    if device["gpu"] is None:
        print(
            "gpu_report: expected a GPU that PyTorch can use, got "
            + device.get(
                "error", f"none with PyTorch {device.get('torch')} (CUDA {device.get('torch_cuda')})"
            ),
            file=sys.stderr,
        )
        return 2
    with tempfile.TemporaryDirectory(prefix="sp_fast_gpu_report_") as folder:
        work = Path(folder) if options.dry_run else WORK
        place = Place(work / "site", work / "logs", device, small=options.dry_run)
        results = work / "results" if options.dry_run else options.results
        writer = Writer(results, slug(device["gpu"]), place.logs)
        report = start(device, read_json(writer.json), SMALL if options.dry_run else FULL)
        environment.make_site(place.site)
        clock.say(f"{device['gpu']}, PyTorch {device.get('torch')}")
        wheels = environment.install_wheels(os.environ.get("SP_FAST_WHEELS"), place.site)
        report["missing"] = sorted(environment.missing([str(place.site)]).values())
        clock.say(f"wheels: {wheels}; missing: {', '.join(report['missing']) or 'nothing'}")
        for name in [part for part in PARTS if part in options.parts]:
            limit = limit_of(name, clock.left)
            if limit < 5:
                report["parts"][name] = {"verdict": "skipped", "note": "no time was left", "seconds": 0}
            else:
                clock.say(f"{name}, {limit:.0f} s at most")
                part = PARTS[name][0](place, limit)
                report["parts"][name] = part.as_json()
                clock.say(f"{name}: {part.verdict}{': ' + part.note if part.note else ''}")
            writer.write(report)
        if options.dry_run:
            print(writer.markdown.read_text())
            clock.say("a dry run: nothing was measured and nothing was written")
        else:
            clock.say(f"results: {writer.json} and {writer.markdown.name}")
            print("to put the times into README.md: cd benchmarks && python3 -m gpu_report.readme")
    return 1 if failed(report, options.parts) else 0
