"""The README's table of times on a GPU, from the results: `python -m gpu_report.readme` in benchmarks/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gpu_report.environment import BENCHMARKS, ROOT
from gpu_report.files import read_json, write_whole
from gpu_report.render import table

BEGIN, END = "<!-- times on a GPU -->", "<!-- end of times on a GPU -->"
NOTHING = "On a GPU nothing has been measured yet: `make gpu-report` does that, and its table comes here."


def measured(folder: Path = BENCHMARKS / "results") -> dict[str, dict[str, Any]]:
    """The reports with times in them, by the name of their files."""
    reports = {path.stem: read_json(path) for path in sorted(folder.glob("*.json"))}
    return {
        name: report
        for name, report in reports.items()
        if report.get("parts", {}).get("benchmarks", {}).get("rows")
    }


def section(reports: dict[str, dict[str, Any]]) -> str:
    """What stands between the marks."""
    if not reports:
        return f"{NOTHING}\n"
    parts = []
    for name, report in reports.items():
        torch = report["versions"]["torch"]
        where = f"{report['gpu']}, PyTorch {torch}, {report['images']}; microseconds"
        said = f"{where} ([how, and the rest](benchmarks/results/{name}.md)):"
        parts.append("\n".join([said, "", *table(report["parts"]["benchmarks"]["rows"])]) + "\n")
    return "\n".join(parts)


def put(text: str, reports: dict[str, dict[str, Any]]) -> str:
    """The README with the section replaced."""
    before, rest = text.split(f"{BEGIN}\n")
    after = rest.split(END)[1]
    return f"{before}{BEGIN}\n{section(reports)}{END}{after}"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    write_whole(readme, put(readme.read_text(), measured()))
