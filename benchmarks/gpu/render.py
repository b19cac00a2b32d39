"""The report of a card, results/<card>.json, and its rendering as Markdown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sp_fast.files import write_json, write_text

HOW = """\
All times are in microseconds. Time: one of many calls in a replayed CUDA graph, median of 25 replays; the
calls rotate over up to 64 sets of inputs, which together exceed the L2 cache unless the inputs are small.
Floor: the largest of moving all bytes once, doing all operations and launching all kernels
(`benchmarks/gpu/costs.py`), at the rates measured in the same run. Goal: the target for the ratio of time to
floor. As called, and the columns after it: a call from Python, including launches."""


def read(path: Path) -> dict[str, Any]:
    """Read a report; an empty one if there is no file."""
    return json.loads(path.read_text()) if path.exists() else {}


def write(report: dict[str, Any], path: Path) -> None:
    """Write both files, each as an atomic write."""
    write_json(report, path)
    write_text(render(report), path.with_suffix(".md"))


def _number(microseconds: float | None) -> str:
    if microseconds is None:
        return "-"
    return f"{microseconds:.1f}" if microseconds < 10 else f"{microseconds:,.0f}"


def _median(measured: dict[str, Any] | None) -> float | None:
    return measured["us"] if measured else None


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Render one line per row: time in a graph against floor and goal, then times as called."""
    lines = [
        "| op | time | floor | ratio | goal | | as called | plain PyTorch | compiled | other |",
        "|---|---:|---:|---:|---:|---|---:|---:|---:|---|",
    ]
    for row in rows.values():
        time, floor, goal = _median(row.get("graph")), row.get("floor_us"), row.get("goal")
        ratio = time / floor if time is not None and floor else None
        others = {name: _number(_median(of)) for name, of in row["others"].items()}
        known = [others.pop(name, "-") for name in ("plain PyTorch", "compiled")]
        cells = [
            row["title"],
            _number(time),
            _number(floor),
            "-" if ratio is None else f"{ratio:.1f}",
            "-" if goal is None else f"{goal:g}",
            "" if goal is None or ratio is None else "met" if ratio <= goal else "missed",
            _number(_median(row.get("called"))),
            *known,
            "; ".join(f"{name}: {of}" for name, of in others.items()) or "-",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _ceilings(of: dict[str, Any] | None) -> str:
    if not of:
        return "The ceilings of the device were not measured."
    rates = of["rates"]
    return (
        f"Ceilings measured in the same run: copy {of['copy'] / 1e12:.2f} TB/s (read and written), products "
        f"of bf16 {rates['bf16'] / 1e12:.0f} TFLOP/s and of TF32 {rates['tf32'] / 1e12:.0f}, bit counts "
        f"{rates['popcount'] / 1e12:.2f} T words/s, a launch in a graph {of['launch'] * 1e6:.1f} us."
    )


def _target(name: str, of: dict[str, Any]) -> list[str]:
    versions = ", ".join(f"{key} {value}" for key, value in of["versions"].items() if value)
    lines = ["", f"## make gpu-{name}", "", f"{of['date']}, commit {of['commit']}; {versions}.", ""]
    lines += ["| step | verdict | seconds | |", "|---|---|---:|---|"]
    for step, found in of["steps"].items():
        note = found["note"].replace("|", "/")
        lines.append(f"| {step} | {found['verdict']} | {found['seconds']:.0f} | {note} |")
    if of.get("rows"):
        lines += ["", of["sizes"] + ".", "", *table(of["rows"]), "", HOW, "", _ceilings(of["ceilings"])]
    if of["left_out"]:
        lines += ["", "Left out:", "", *(f"- {what}" for what in of["left_out"])]
    return lines


def render(report: dict[str, Any]) -> str:
    """Render the whole report."""
    targets = [line for name, of in report.items() if name != "gpu" for line in _target(name, of)]
    return "\n".join([f"# {report['gpu']}", *targets]) + "\n"
