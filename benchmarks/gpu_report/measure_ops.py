"""Measures every row, written after each: `python -m gpu_report.measure_ops --out FILE --seconds 200`.

First what cannot be done without: ceilings, sp_fast's times and kernels. Then plain PyTorch and the peers,
then plain PyTorch compiled. What there is no time left for, or no package, is named.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gpu_report import measure
from gpu_report.cases import Case, cases
from gpu_report.costs import FULL, SMALL, Ceilings
from gpu_report.files import read_json, write_json

# Exit status after an error that makes the device unusable for this process.
BROKEN = 3


class Report:
    """What was measured, in a file that is whole at any time."""

    def __init__(self, out: Path, seconds: float) -> None:
        self.out = out
        self.end = time.monotonic() + seconds
        before = read_json(out)
        self.content: dict[str, Any] = before or {"ceilings": None, "rows": {}, "skipped": [], "begun": []}

    def save(self) -> None:
        write_json(self.out, self.content)

    def skip(self, what: str, why: object) -> None:
        """Name what is left out."""
        reason = str(why).strip().splitlines()[0][:200] if str(why).strip() else type(why).__name__
        self.content["skipped"].append({"what": what, "why": reason})
        print(f"    left out: {what}: {reason}", flush=True)

    def begins(self, what: str) -> bool:
        """Whether `what` was not begun before; from now on it was, also if it ends this process."""
        if what in self.content["begun"]:
            return False
        self.content["begun"].append(what)
        self.save()
        return True

    def attempt(self, what: str, need: float, work: Callable[[], Any]) -> Any:
        """The result of `work`, or None where it fails or there are not `need` seconds left for it."""
        left = self.end - time.monotonic()
        if left < need:
            self.skip(what, f"{left:.0f} s were left, it may take {need:.0f} s")
            return None
        try:
            return work()
        except ImportError as missing:
            self.skip(what, f"needs {missing.name or missing}, which is not installed")
        except Exception as error:  # whatever one row meets, the others are measured
            self.skip(what, f"{type(error).__name__}: {error}")
            leave_broken_device(self)
        return None


def leave_broken_device(report: Report) -> None:
    """After an error that no later call survives, end: the caller goes on in a new process."""
    if torch.cuda.is_available():
        try:
            torch.cuda.synchronize()
            torch.ones(1, device="cuda").add_(1).item()
        except Exception as error:
            print(f"    the device is not usable any more: {error}", flush=True)
            report.save()
            sys.exit(BROKEN)


def bind(function: Callable[..., Any], sets: list[tuple[Any, ...]]) -> list[Callable[[], Any]]:
    """A call for every set of inputs."""
    return [lambda inputs=inputs: function(*inputs) for inputs in sets]


def measure_op(report: Report, case: Case, device: str, known: Ceilings | None) -> None:
    """Times of sp_fast's op, its floor, and its kernels."""
    row = report.content["rows"].setdefault(
        case.row.key,
        {
            "title": case.row.title,
            "goal_us": case.row.goal if device == "cuda" else None,
            "floor_us": None,
            "peers": {},
        },
    )
    if known is not None:
        row["floor_us"] = case.row.floor(known) * 1e6
    row["work"] = [dataclasses.asdict(work) for work in case.row.work]
    sets = [case.make(i) for i in range(case.sets)]
    calls = bind(case.call(case.op), sets)
    in_graph, called = (
        (measure.in_graph, measure.eager) if device == "cuda" else (measure.on_cpu, measure.on_cpu)
    )
    row["graph"] = report.attempt(f"{case.row.key} in a graph", 2, lambda: in_graph(calls))
    row["called"] = report.attempt(f"{case.row.key} called", 2, lambda: called(calls))
    if device == "cuda":
        row["kernels"] = report.attempt(
            f"{case.row.key}: its kernels", 5, lambda: measure.kernels_of(calls[0])
        )
    report.save()


def measure_others(report: Report, case: Case, device: str) -> None:
    """Times of plain PyTorch and of the peers, as called."""
    row = report.content["rows"][case.row.key]
    sets = [case.make(i) for i in range(2)]
    called = measure.eager if device == "cuda" else measure.on_cpu
    if case.plain is None:
        report.skip(f"{case.row.key}: plain PyTorch", "there is no plain version of it here")
    else:
        calls = bind(case.call(case.plain), sets)
        row["plain"] = report.attempt(f"{case.row.key}: plain PyTorch", 8, lambda: called(calls))
    for name, peer in case.peers.items():

        def run(peer=peer) -> Any:
            return called(bind(peer.call, [peer.prepare(*inputs) for inputs in sets]))

        row["peers"][name] = report.attempt(f"{case.row.key}: {name}", 8, run)
    report.save()


def measure_compiled(report: Report, case: Case) -> None:
    """Time of plain PyTorch compiled, as called."""
    if case.plain is None:
        return
    what = f"{case.row.key}: plain PyTorch compiled"
    if case.not_compiled:
        report.skip(what, case.not_compiled)
        return
    torch._dynamo.reset()
    function = case.call(torch.compile(case.plain, dynamic=False))
    sets = [case.make(i) for i in range(2)]
    row = report.content["rows"][case.row.key]
    row["compiled"] = report.attempt(what, 25, lambda: measure.eager(bind(function, sets)))
    report.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=math.inf)
    parser.add_argument("--small", action="store_true", help="small sizes on the CPU, to try the script")
    options = parser.parse_args()
    device = "cpu" if options.small else "cuda"
    report = Report(options.out, options.seconds)
    table = cases(SMALL if options.small else FULL, device)
    if device == "cuda":
        # Whatever plain PyTorch gains by it; the ops choose for themselves.
        torch.set_float32_matmul_precision("high")
        if report.begins("the device's ceilings"):
            known = report.attempt("the device's ceilings", 10, measure.ceilings)
            report.content["ceilings"] = dataclasses.asdict(known) if known else None
    known = Ceilings(**report.content["ceilings"]) if report.content["ceilings"] else None
    # Compiling takes long where there are many boxes: those come last.
    quick_first = sorted(table, key=lambda case: case.row.key.startswith("roi"))
    phases: list[tuple[str, list[Case], Callable[[Case], None]]] = [
        ("op", table, lambda case: measure_op(report, case, device, known)),
        ("plain PyTorch and peers", table, lambda case: measure_others(report, case, device)),
    ]
    if device == "cuda":
        phases.append(("plain PyTorch compiled", quick_first, lambda case: measure_compiled(report, case)))
    for phase, of, work in phases:
        for case in of:
            what = f"{case.row.key}: {phase}"
            if report.begins(what):
                print(f"  {phase}: {case.row.title}", flush=True)
                report.attempt(what, 0, lambda work=work, case=case: work(case))
                if device == "cuda":
                    torch.cuda.empty_cache()
    report.content["complete"] = True
    report.save()


if __name__ == "__main__":
    main()
