"""Builds sp_fast on a GPU, then tests, benchmarks or sanitizes it: benchmarks/results/<card>.json and .md.

Uses no network and installs nothing outside build/gpu. Results are written after each step, and skipped steps
are listed. SP_FAST_WHEELS may name a folder with wheels of missing packages.

Exit status: 0: success; 1: the build, a test or the sanitizer failed; 2: no GPU; 3: out of time.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.gpu.render import read
from benchmarks.gpu.steps import FAILED, LEFT_OUT, OUT_OF_TIME, ROOT, Place, carry_out
from benchmarks.gpu.targets import TARGETS
from benchmarks.inputs import FULL, SMALL

PROBE = """
import importlib.metadata as packages, json, torch
found = {"torch": torch.__version__, "CUDA": torch.version.cuda}
found["triton"] = next((p.version for p in packages.distributions(name="triton")), None)
if torch.cuda.is_available():
    torch.ones(1, device="cuda").add_(1).item()
    found["gpu"] = torch.cuda.get_device_name()
    found["capability"] = "{}.{}".format(*torch.cuda.get_device_capability())
print(json.dumps(found))
"""


def probe() -> dict[str, Any]:
    """Query versions and the device in another process; there is no "gpu" key without a GPU."""
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=120)
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"error": done.stderr}


def begin(target: str, device: dict[str, Any], before: dict[str, Any], dry: bool) -> dict[str, Any]:
    """Start a new report of this target, and keep the results of the other targets."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes"),
        "commit": done.stdout.strip() or "unknown",
        "versions": {"Python": sys.version.split()[0], **device},
        "steps": {},
        "left_out": [],
    }
    if target == "bench":
        found |= {"sizes": str(SMALL if dry else FULL), "ceilings": None, "rows": {}, "begun": []}
    return {**before, "gpu": device["gpu"], target: found}


def main(arguments: list[str] | None = None) -> int:
    """Run a target and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("target", choices=TARGETS, help="What to run")
    parser.add_argument(
        "--minutes", type=float, default=9, help="Time limit in minutes; default: %(default)s"
    )
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results", help="Folder of the results"
    )
    parser.add_argument("--dry-run", action="store_true", help="Try every step on the CPU at small sizes")
    options = parser.parse_args(arguments)
    # On SIGTERM, exit normally, so that the running command is stopped too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    device = probe()
    if options.dry_run:
        device |= {"gpu": "dry run", "capability": "9.0"}
    if "gpu" not in device:
        found = device.get("error") or f"none with PyTorch {device['torch']} (CUDA {device['CUDA']})"
        print(f"gpu-{options.target}: expected a GPU that PyTorch can use, got {found}", file=sys.stderr)
        return 2
    work = ROOT / "build" / "gpu"
    work.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", device["gpu"].lower()).strip("-")
    place = Place(work, options.results / f"{name}.json", device, options.dry_run)
    report = begin(options.target, device, read(place.results), options.dry_run)
    carry_out(TARGETS[options.target], 60 * options.minutes, place, report, options.target)
    for name, step in report[options.target]["steps"].items():
        if step["verdict"] in (LEFT_OUT, OUT_OF_TIME):
            print(f"{step['verdict']}: {name}: {step['note']}")
    verdicts = [step["verdict"] for step in report[options.target]["steps"].values()]
    print(f"results: {place.results} and {place.results.with_suffix('.md').name}")
    return 1 if FAILED in verdicts else 3 if OUT_OF_TIME in verdicts else 0


if __name__ == "__main__":
    sys.exit(main())
