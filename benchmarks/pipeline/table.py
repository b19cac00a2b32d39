"""A run's values in JSON, and the table of two runs."""

from __future__ import annotations

import dataclasses
import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from benchmarks.pipeline.rows import Row, Sizes

_NUMBERS = ("before", "after", "times", "floor", "goal")


@dataclass(frozen=True)
class Run:
    """The values of a run by the rows' keys, and all that they depend on."""

    processor: str
    pixels: str  # "made up" or "photographs"
    sizes: dict[str, Any]
    values: dict[str, float]
    version: str = torch.__version__

    @classmethod
    def of(cls, rows: Sequence[Row], sizes: Sizes, pixels: str) -> Run:
        """The run that just measured these rows, its sizes as JSON has them."""
        plain = json.loads(json.dumps(dataclasses.asdict(sizes)))
        return cls(processor(), pixels, plain, {row.key: row.value for row in rows})

    @classmethod
    def read(cls, path: Path, pixels: str) -> Run | None:
        """The run of a file with these pixels, if it has one."""
        runs = json.loads(path.read_text())
        return cls(**runs[pixels]) if pixels in runs else None

    def write(self, path: Path) -> None:
        """Add the run to the file; values of rows that it did not measure stay."""
        runs = json.loads(path.read_text()) if path.is_file() else {}
        earlier = runs.get(self.pixels, {"values": {}})["values"]
        runs[self.pixels] = dataclasses.asdict(self) | {"values": earlier | self.values}
        path.write_text(json.dumps(runs, indent=1) + "\n")


def processor() -> str:
    """Model of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    found: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    if "model name" not in found:
        return platform.processor() or platform.machine()
    return f"{found['model name']}, family {found.get('cpu family')}, model {found.get('model')}"


def differences(run: Run, before: Run | None) -> list[str]:
    """Why the two runs cannot be compared; none where they can."""
    if before is None:
        return [f"there is no earlier run with {run.pixels} images"]
    names = ("processor", "version", "sizes")
    pairs = ((name, getattr(before, name), getattr(run, name)) for name in names)
    return [f"before: {name} {old}, after: {new}" for name, old, new in pairs if old != new]


def _number(value: float | None) -> str:
    if value is None:
        return ""
    if value == int(value) and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _cells(row: Row, before: Run | None) -> list[str]:
    """The numbers of a row."""
    old = before.values.get(row.key) if before else None
    times = f"{old / row.value:.2f}" if old is not None and row.value else ""
    return [_number(old), _number(row.value), times, _number(row.floor), _goal(row, old)]


def _goal(row: Row, old: float | None) -> str:
    """The goal, and whether it is met."""
    if row.goal is not None:
        return f"{_number(row.goal)} {'met' if row.value <= row.goal else 'over'}"
    if row.times is None:
        return ""
    known = old is not None and bool(row.value)
    return f"{row.times:g}x" + (f" {'met' if old >= row.times * row.value else 'low'}" if known else "")


def _groups(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    ordered = sorted(rows, key=lambda row: [one.group for one in rows].index(row.group))
    return ((name, list(group)) for name, group in groupby(ordered, key=lambda row: row.group))


def terminal(rows: Sequence[Row], run: Run, before: Run | None) -> str:
    """The table in 80 columns."""
    lines = [f"{'':35}" + "".join(f"{name:>9}" for name in _NUMBERS)]
    for group, members in _groups(rows):
        lines += ["", group]
        for row in members:
            lines.append(f"  {row.name:33}" + "".join(f"{cell:>9}" for cell in _cells(row, before)))
    return "\n".join([*lines, "", *differences(run, before)])


def markdown(rows: Sequence[Row], run: Run, before: Run | None) -> str:
    """The same as a page."""
    lines = [
        "# CPU time, bytes and counts of what a user waits for",
        "",
        "Written by `make bench-pipeline`. CPU time of one thread, medians; `times`: before / after. A goal",
        "is the most that `after` may be, or (1.25x) the least that `times` may be.",
        "",
        f"- {run.processor}; PyTorch {run.version}; images {run.pixels}",
        "- sizes: " + ", ".join(f"{name} {value}" for name, value in run.sizes.items()),
        *(f"- {line}" for line in differences(run, before)),
        "",
    ]
    for group, members in _groups(rows):
        lines += [
            f"## {group}",
            "",
            "| | " + " | ".join(_NUMBERS) + " | floor is |",
            "|---|" + "---:|" * 5 + "---|",
        ]
        lines += [
            f"| {row.name} | " + " | ".join(_cells(row, before)) + f" | {row.floor_is} |" for row in members
        ]
        lines.append("")
    return "\n".join(lines)
