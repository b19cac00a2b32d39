"""The results as Markdown."""

from __future__ import annotations

from typing import Any

NOTHING = "-"


def _number(microseconds: float | None) -> str:
    if microseconds is None:
        return NOTHING
    if microseconds < 10:
        return f"{microseconds:.1f}"
    return f"{microseconds:,.0f}"


def _median(measured: dict[str, Any] | None) -> float | None:
    return measured["us"] if measured else None


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """One line a row: time in a graph against floor and goal, then times as called."""
    lines = [
        "| op | time | floor | ratio | goal | | as called | plain PyTorch | compiled | peer |",
        "|---|---:|---:|---:|---:|---|---:|---:|---:|---|",
    ]
    for row in rows.values():
        time, floor, goal = _median(row.get("graph")), row.get("floor_us"), row.get("goal_us")
        ratio = f"{time / floor:.1f}" if time is not None and floor else NOTHING
        met = "" if goal is None or time is None else "met" if time <= goal else "missed"
        peers = [
            f"{name}: {_number(_median(of))}"
            for name, of in (row.get("peers") or {}).items()
            if of is not None
        ]
        cells = [
            row["title"],
            _number(time),
            _number(floor),
            ratio,
            NOTHING if goal is None else f"{goal:g}",
            met,
            *(_number(_median(row.get(key))) for key in ("called", "plain", "compiled")),
            "; ".join(peers) or NOTHING,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _ceilings(of: dict[str, Any] | None) -> list[str]:
    if not of:
        return ["The device's ceilings were not measured."]
    rates = of["rates"]
    return [
        f"Ceilings measured in the same run: copy {of['copy'] / 1e12:.2f} TB/s (read and written), products "
        f"of bf16 {rates['bf16'] / 1e12:.0f} TFLOP/s and of TF32 {rates['tf32'] / 1e12:.0f}, bit counts "
        f"{rates['popcount'] / 1e12:.2f} T words/s, a launch in a graph {of['launch'] * 1e6:.1f} us."
    ]


HOW = [
    "All in microseconds. Time: of one call among many in a replayed CUDA graph, the median of 25 replays;",
    "the calls take turns on several sets of inputs, together larger than the L2 cache except where 64 sets",
    "are not. Floor: the largest of bytes once through memory, operations at the unit's rate, and launches",
    "there must be (`benchmarks/gpu_report/costs.py`). As called, plain PyTorch, compiled and peer: time of",
    "a call from Python, launches included.",
]


def _verdicts(parts: dict[str, dict[str, Any]]) -> list[str]:
    lines = ["| part | verdict | seconds | |", "|---|---|---:|---|"]
    for name, part in parts.items():
        note = part.get("note") or ""
        if tests := part.get("tests"):
            note = f"{tests['passed']:,} passed, {tests['failed']:,} failed, {tests['skipped']:,} skipped"
        if tools := part.get("tools"):
            note = "; ".join(f"{tool}: {of['verdict']} ({of['note']})" for tool, of in tools.items())
        lines.append(f"| {name} | {part['verdict']} | {part['seconds']:.0f} | {note.replace('|', '/')} |")
    return lines


def _left_out(report: dict[str, Any]) -> list[str]:
    lines = [f"- `{package}` is not installed" for package in report.get("missing", [])]
    for name, part in report["parts"].items():
        if part["verdict"] == "skipped":
            lines.append(f"- {name}: {part['note']}")
        for reason, number in (part.get("tests") or {}).get("skips", {}).items():
            lines.append(f"- {name}, {number} skipped: {' '.join(reason.split())}")
        lines += [f"- {skip['what']}: {skip['why']}" for skip in part.get("skipped", [])]
    return lines


def render(report: dict[str, Any]) -> str:
    """The whole report."""
    versions = report["versions"]
    parts = report["parts"]
    measured = parts.get("benchmarks", {})
    said = ", ".join(f"{name} {of}" for name, of in versions.items() if of is not None)
    lines = [
        f"# {report['gpu']}",
        "",
        f"Written by `make gpu-report`, {report['date']}, commit {report.get('commit') or 'unknown'};",
        f"{said}.",
        f"{report['images']}.",
        "",
        *_verdicts(parts),
    ]
    failures = [
        f"- {part}: `{name}`"
        for part, of in parts.items()
        for name in (of.get("tests") or {}).get("failures", [])
    ]
    if failures:
        lines += ["", "## Failed", "", *failures]
    lines += ["", "## Times", ""]
    if measured.get("rows"):
        lines += [*table(measured["rows"]), "", *HOW, "", *_ceilings(measured.get("ceilings"))]
    else:
        lines += ["Nothing was measured."]
    left_out = _left_out(report)
    if left_out:
        lines += ["", "## Left out", "", *left_out]
    return "\n".join(lines) + "\n"
