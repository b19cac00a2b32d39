"""Times every op and updates the report after each: `python -m benchmarks.gpu.bench REPORT --seconds 300`.

The most important comes first: the device's ceilings, then the time and the kernels of every op, then plain
PyTorch (eager and compiled) and other libraries. What lacks time or a package is listed as left out.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.cases import Case, Function, cases
from benchmarks.gpu import costs, measure
from benchmarks.gpu.render import read, write
from benchmarks.inputs import FULL, SMALL, Sizes

# All sets of inputs together are several times the size of an L2 cache, but there are at most MOST_SETS.
ROTATED_BYTES, MOST_SETS = 256 * 2**20, 64
# Name of a measurement, the seconds that it may take, and the function that measures.
Measurement = tuple[str, float, Callable[[], Any]]


class Session:
    """A benchmark run whose report on disk is always complete."""

    def __init__(self, path: Path, seconds: float, gpu: bool) -> None:
        self.path, self.gpu = path, gpu
        self.end = time.monotonic() + seconds
        self.report = read(path)
        self.found = self.report["bench"]

    def once(self, what: str, need: float, work: Callable[[], Any]) -> Any:
        """Return the result of `work`, or None if it fails, or if fewer than `need` seconds are left.

        None also if an earlier process began it: it crashed. Exits if the device is no longer usable.
        """
        if what in self.found["begun"]:
            return None
        print(what, flush=True)
        self.found["begun"].append(what)
        write(self.report, self.path)
        left = self.end - time.monotonic()
        try:
            if left >= need:
                return work()
            reason = f"{left:.0f} s were left, it may take {need:.0f} s"
        except ImportError as missing:
            reason = f"needs {missing.name or missing}, which is not installed"
        except Exception as error:  # still measure the others
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if self.gpu and not measure.usable():
                sys.exit(reason)  # the parent process records it
        self.found["left_out"].append(f"{what}: {reason}")
        print(f"left out: {what}: {reason}", flush=True)
        return None

    def run(self, case: Case, sizes: Sizes, measurements: Iterator[Measurement]) -> None:
        """Add measurements to the case's row of the report."""
        work, goal = costs.rows(sizes)[case.key]
        known = self.found["ceilings"]
        floor = sum(costs.floor(one, costs.Ceilings(**known)) for one in work) * 1e6 if known else None
        counted = {"work": [dataclasses.asdict(one) for one in work], "floor_us": floor, "goal": goal}
        row = self.found["rows"].setdefault(case.key, {"title": case.title, **counted, "measured": {}})
        for name, need, function in measurements:
            measured = self.once(f"{case.title}: {name}", need, function)
            if measured is not None:
                row["measured"][name] = measured
                write(self.report, self.path)
            if self.gpu:
                torch.cuda.empty_cache()


def calls(case: Case, function: Function, sets: int) -> list[measure.Call]:
    """Calls of the function with different inputs."""
    return [partial(case.call(function), *case.make(i)) for i in range(sets)]


def of_op(case: Case, sizes: Sizes, gpu: bool) -> Iterator[Measurement]:
    """Time the op as called and in a graph, and list the kernels it launches."""
    moved = sum(one.moved for one in costs.rows(sizes)[case.key][0])
    op = partial(calls, case, case.op, min(max(2, -(-ROTATED_BYTES // moved)), MOST_SETS if gpu else 2))
    yield "as called", 2, lambda: measure.eager(op(), 0.3 if gpu else 0.01)
    if gpu:
        yield "in a graph", 2, lambda: measure.in_graph(op())
        yield "kernels", 5, lambda: measure.kernels_of(op()[0])


def of_others(case: Case, sizes: Sizes, gpu: bool) -> Iterator[Measurement]:
    """Time plain PyTorch and other libraries, as called."""
    others = {"plain PyTorch": case.plain} if case.plain else {}
    if case.plain and case.compiled and gpu:
        torch._dynamo.reset()
        others["compiled"] = torch.compile(case.plain, dynamic=False)
    for name, other in {**others, **case.others}.items():
        need = 25 if name == "compiled" else 8
        yield name, need, lambda f=other: measure.eager(calls(case, f, 2), 0.3 if gpu else 0.01)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("report", type=Path, help="JSON report; measurements begun before are not repeated")
    parser.add_argument("--seconds", type=float, required=True, help="Time limit in seconds")
    parser.add_argument("--dry-run", action="store_true", help="Use small sizes on the CPU")
    options = parser.parse_args()
    gpu, sizes = not options.dry_run, SMALL if options.dry_run else FULL
    session = Session(options.report, options.seconds, gpu)
    # Let plain PyTorch use TF32; the ops make their own choice.
    torch.set_float32_matmul_precision("high")
    if gpu and (found := session.once("ceilings", 2, measure.ceilings)):
        session.found["ceilings"] = dataclasses.asdict(found)
    for measurements in (of_op, of_others):
        for case in cases(sizes, "cuda" if gpu else "cpu"):
            session.run(case, sizes, measurements(case, sizes, gpu))
    write(session.report, session.path)


if __name__ == "__main__":
    main()
