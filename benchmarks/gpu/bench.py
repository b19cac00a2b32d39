"""Times every op and updates the report after each: `python -m benchmarks.gpu.bench REPORT --seconds 300`.

The most important comes first: the device's ceilings, then the time and the kernels of every op, then plain
PyTorch (eager and compiled) and other libraries. What lacks time or a package is listed as left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import Case, Function, cases
from benchmarks.gpu import costs, measure
from benchmarks.gpu.render import read, write
from benchmarks.gpu.targets import BROKEN
from benchmarks.inputs import FULL, SMALL

# All sets of inputs together are several times the size of an L2 cache, but there are at most MOST_SETS.
ROTATED_BYTES, MOST_SETS = 256 * 2**20, 64


class Session:
    """A benchmark run whose report on disk is always complete."""

    def __init__(self, path: Path, seconds: float, sizes: Any) -> None:
        self.path, self.sizes = path, sizes
        self.end = time.monotonic() + seconds
        self.report = read(path)
        self.found = self.report["bench"]
        self.gpu = sizes is FULL

    def leave_out(self, what: str, why: str) -> None:
        """Record what is left out, and why."""
        self.found["left_out"].append(f"{what}: {why}")
        print(f"left out: {what}: {why}", flush=True)

    def attempt(self, what: str, need: float, work: Callable[[], Any]) -> Any:
        """Return the result of `work`, or None if it fails or fewer than `need` seconds are left."""
        left = self.end - time.monotonic()
        if left < need:
            return self.leave_out(what, f"{left:.0f} s were left, it may take {need:.0f} s")
        try:
            return work()
        except ImportError as missing:
            return self.leave_out(what, f"needs {missing.name or missing}, which is not installed")
        except Exception as error:  # still measure the other ops
            self.leave_out(what, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        if self.gpu:
            try:
                torch.ones(1, device="cuda").add_(1).item()
            except Exception:
                write(self.report, self.path)
                sys.exit(BROKEN)
        return None

    def once(self, what: str, work: Callable[[], Any]) -> None:
        """Run `work` unless this or an earlier process began it, even if that process crashed in it."""
        if what in self.found["begun"]:
            return
        self.found["begun"].append(what)
        write(self.report, self.path)
        print(what, flush=True)
        self.attempt(what, 2, work)
        if self.gpu:
            torch.cuda.empty_cache()
        write(self.report, self.path)

    def row(self, case: Case) -> dict[str, Any]:
        """The report's row of a case, created with its counted work when it is first used."""
        if case.key not in self.found["rows"]:
            work, goal = costs.rows(self.sizes)[case.key]
            known = self.found["ceilings"]
            floor = sum(costs.floor(one, costs.Ceilings(**known)) for one in work) * 1e6 if known else None
            counted = {"work": [dataclasses.asdict(one) for one in work], "floor_us": floor, "goal": goal}
            self.found["rows"][case.key] = {"title": case.title, **counted, "others": {}}
        return self.found["rows"][case.key]

    def measure_op(self, case: Case) -> None:
        """Time the op in a graph and as called, and list the kernels it launches."""
        row = self.row(case)
        moved = sum(work["moved"] for work in row["work"])
        sets = min(max(2, -(-ROTATED_BYTES // moved)), MOST_SETS if self.gpu else 2)
        calls = bind(case.call(case.op), [case.make(i) for i in range(sets)])
        row["called"] = self.attempt(f"{case.title}: as called", 2, lambda: measure.eager(calls))
        if self.gpu:
            row["graph"] = self.attempt(f"{case.title}: in a graph", 2, lambda: measure.in_graph(calls))
            row["kernels"] = self.attempt(f"{case.title}: kernels", 5, lambda: measure.kernels_of(calls[0]))

    def measure_others(self, case: Case) -> None:
        """Time plain PyTorch and other libraries, as called."""
        others = {"plain PyTorch": case.plain} if case.plain else {}
        if case.plain and case.compiled and self.gpu:
            torch._dynamo.reset()
            others["compiled"] = torch.compile(case.plain, dynamic=False)
        for name, other in {**others, **case.others}.items():
            calls = bind(case.call(other), [case.make(i) for i in range(2)])
            need = 25 if name == "compiled" else 8
            timed = self.attempt(f"{case.title}: {name}", need, lambda calls=calls: measure.eager(calls))
            self.row(case)["others"][name] = timed


def bind(function: Function, sets: list[tuple[Any, ...]]) -> list[measure.Call]:
    """Bind the function to every set of inputs."""
    return [lambda inputs=inputs: function(*inputs) for inputs in sets]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path, help="JSON report; measurements begun before are not repeated")
    parser.add_argument("--seconds", type=float, required=True, help="Time limit in seconds")
    parser.add_argument("--dry-run", action="store_true", help="Use small sizes on the CPU")
    options = parser.parse_args()
    session = Session(options.report, options.seconds, SMALL if options.dry_run else FULL)
    # Let plain PyTorch use TF32; the ops make their own choice.
    torch.set_float32_matmul_precision("high")
    if session.gpu:
        session.once(
            "ceilings", lambda: session.found.update(ceilings=dataclasses.asdict(measure.ceilings()))
        )
    table = cases(session.sizes, "cuda" if session.gpu else "cpu")
    for kind, work in (("sp_fast", session.measure_op), ("others", session.measure_others)):
        for case in table:
            session.once(f"{case.title}: {kind}", lambda work=work, case=case: work(case))


if __name__ == "__main__":
    main()
