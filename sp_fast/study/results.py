"""The study's numbers: of all finished pieces, put together; nothing enters that was not measured."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student_t

from sp_fast.study.pieces import PERCENTS, Piece
from sp_fast.study.variants import EXPECTED, VARIANTS

METRICS = {
    "class_agnostic": ("class_agnostic", "ap"),
    "class_agnostic_50": ("class_agnostic", "ap50"),
    "classes": ("classes", "ap"),
    "classes_50": ("classes", "ap50"),
}


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's with the threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    threads = torch.get_num_threads()
    return f"{model}, {threads} thread{'s' if threads > 1 else ''}"


def collect(
    options: dict[str, Any],
    title: str,
    command: str,
    pieces: Sequence[Piece],
    proposals: dict[str, Any],
) -> dict[str, Any]:
    """All numbers as plain values, ready for JSON.

    Args:
        options: what was asked for.
        title: the model's.
        command: as it was given.
        pieces: of all variants and seeds that are asked for, finished or not.
        proposals: how well they cover the objects, by preset and split.
    """
    finished = [piece for piece in pieces if piece.finished]
    runs: dict[str, Any] = {}
    for piece in finished:
        runs.setdefault(piece.variant, {}).setdefault(piece.kind, {})[str(piece.seed)] = piece.result()
    summary = {}
    for variant, kinds in runs.items():
        summary[variant] = {
            f"{percent}": {
                name: _summary(kinds[f"finetune-{percent}"], *place) for name, place in METRICS.items()
            }
            for percent in PERCENTS
            if f"finetune-{percent}" in kinds
        }
    return {
        "title": title,
        "command": command,
        "options": options,
        "torch": torch.__version__,
        "threads": os.cpu_count(),
        "complete": len(finished) == len(pieces),
        "missing": [piece.name for piece in pieces if not piece.finished],
        "seeds": sorted({piece.seed for piece in pieces}),
        "variants": list(dict.fromkeys(piece.variant for piece in pieces)),
        "devices": sorted({piece.result()["device"] for piece in finished}),
        "metric": "COCO mask AP on val, 0 to 100; spread: standard deviation over seeds",
        "proposals": proposals,
        "summary": summary,
        "differences": differences(summary),
        "runs": runs,
    }


def _summary(by_seed: dict[str, Any], group: str, name: str) -> dict[str, Any]:
    values = {seed: run["evaluations"][-1][group][name] for seed, run in by_seed.items()}
    return {"values": values, "mean": statistics.mean(values.values()), "spread": _spread(values.values())}


def _spread(values: Any) -> float | None:
    values = list(values)
    return statistics.stdev(values) if len(values) > 1 else None


def differences(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """Class-agnostic AP of one variant less another's, seed by seed, for what the paper lets expect."""
    found = []
    for first, second, claim in EXPECTED:
        for percent in map(str, PERCENTS):
            sides = [summary.get(name, {}).get(percent) for name in (first, second)]
            if None in sides:
                continue
            values = [side["class_agnostic"]["values"] for side in sides]
            common = sorted(values[0].keys() & values[1].keys())
            if not common:
                continue
            each = [values[0][seed] - values[1][seed] for seed in common]
            found.append(
                {
                    "first": first,
                    "second": second,
                    "percent": percent,
                    "claim": claim,
                    "seeds": len(each),
                    "mean": statistics.mean(each),
                    "spread": _spread(each),
                    "verdict": verdict(each),
                }
            )
    return found


def verdict(each: Sequence[float]) -> str:
    """What differences of paired runs say, by Student's t-test at 5 %."""
    if len(each) < 3:
        return f"{len(each)} seed{'s' if len(each) > 1 else ''}: cannot tell"
    mean, error = statistics.mean(each), statistics.stdev(each) / len(each) ** 0.5
    if abs(mean) <= student_t.ppf(0.975, len(each) - 1) * error:
        return "within the noise"
    return "higher" if mean > 0 else "lower"


def label(variant: str) -> str:
    """A variant's title."""
    return VARIANTS[variant].title
