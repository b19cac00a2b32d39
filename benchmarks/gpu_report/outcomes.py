"""What the output of pytest and compute-sanitizer says."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path
from typing import Any

# Last line of the small suite.
DONE = "small suite: done"
# Said by compute-sanitizer where it cannot work at all, rather than of the program.
REFUSALS = (
    "Device not supported",
    "No attachable process",
    "Unable to find injection",
    "Target application terminated before first instrumented API call",
    "Internal Sanitizer Error",
    "Failed to initialize",
)


def of_junit(path: Path) -> dict[str, Any] | None:
    """Numbers, failures by name and skips by reason of a JUnit file; None where there is no whole one."""
    try:
        root = ET.parse(path).getroot()
    except (OSError, ET.ParseError):
        return None
    failures: list[str] = []
    skips: Counter[str] = Counter()
    passed = 0
    for case in root.iter("testcase"):
        name = f"{case.get('classname', '')}::{case.get('name', '')}"
        skip = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            failures.append(name)
        elif skip is not None:
            skips[skip.get("message") or "no reason given"] += 1
        else:
            passed += 1
    return _counted(passed, failures, skips)


def of_log(text: str) -> dict[str, Any]:
    """The same of the output of `pytest -v -n`, for a run that was stopped."""
    results = re.findall(r"\] (PASSED|FAILED|ERROR|SKIPPED) (\S+::.+)", text)
    failures = sorted({name.strip() for verdict, name in results if verdict in ("FAILED", "ERROR")})
    passed = len({name for verdict, name in results if verdict == "PASSED"})
    skipped = len({name for verdict, name in results if verdict == "SKIPPED"})
    return _counted(passed, failures, Counter({"reasons are in the log": skipped} if skipped else {}))


def _counted(passed: int, failures: list[str], skips: Counter[str]) -> dict[str, Any]:
    return {
        "passed": passed,
        "failed": len(failures),
        "skipped": sum(skips.values()),
        "failures": failures[:50],
        "skips": dict(sorted(skips.items())),
    }


def of_sanitizer(text: str, status: int | None) -> tuple[str, str]:
    """Verdict ("passed", "failed", "skipped", "timed out") and the line that says why."""
    lines = text.splitlines()
    refusal = next((line for line in lines if any(words in line for words in REFUSALS)), None)
    summary = next((line for line in reversed(lines) if "SUMMARY" in line), None)
    said = (summary or refusal or (lines[-1] if lines else "no output")).strip("= ")
    if status is None:
        return "timed out", said
    if DONE not in text and refusal is not None:
        return "skipped", f"compute-sanitizer refuses: {refusal.strip('= ')}"
    clean = summary is not None and re.search(r"SUMMARY: 0 (errors|hazards)", summary) is not None
    return ("passed" if status == 0 and clean and DONE in text else "failed"), said
