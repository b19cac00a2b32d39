"""The study's numbers: of all finished pieces, put together; nothing enters that was not measured."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from scipy.stats import t as student_t

from sp_fast.study.pieces import PERCENTS, Piece
from sp_fast.study.variants import EXPECTED, VARIANTS

METRICS = {
    "class_agnostic": ("class_agnostic", "ap"),
    "class_agnostic_50": ("class_agnostic", "ap50"),
    "class_agnostic_recall": ("class_agnostic", "ar"),
    "class_agnostic_recall_large": ("class_agnostic", "ar_large"),
    "class_agnostic_best_iou": ("class_agnostic", "best_iou"),
    "classes": ("classes", "ap"),
    "classes_50": ("classes", "ap50"),
}
# What variants are compared by.
COMPARED = {
    "ap": "class_agnostic",
    "ar": "class_agnostic_recall",
    "ar_large": "class_agnostic_recall_large",
    "best_iou": "class_agnostic_best_iou",
}
# The run that each share of the labels, in percent, is measured after.
RUNS = {"0": "pretrain", **{str(percent): f"finetune-{percent}" for percent in PERCENTS}}


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
        summary[variant] = {percent: _summary(kinds[kind]) for percent, kind in RUNS.items() if kind in kinds}
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
        "metric": "COCO mask AP and AR on val and the objects' mean best IoU, 0 to 100; spread: standard "
        "deviation over seeds",
        "proposals": proposals,
        "summary": summary,
        "differences": differences(summary),
        "runs": runs,
    }


def _summary(by_seed: dict[str, Any]) -> dict[str, Any]:
    last = {seed: run["evaluations"][-1] for seed, run in by_seed.items()}
    found = {}
    for name, (group, metric) in METRICS.items():
        values = {seed: one[group][metric] for seed, one in last.items() if group in one}
        if values:
            found[name] = {"values": values, **_mean_and_spread(values.values())}
    return found


def _mean_and_spread(values: Iterable[float]) -> dict[str, float | None]:
    values = list(values)
    return {"mean": statistics.mean(values), "spread": statistics.stdev(values) if len(values) > 1 else None}


def differences(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """One variant less another, seed by seed, class-agnostic, for what the paper lets expect.

    By each name of COMPARED the mean, the spread and what Student's t-test says.
    """
    found = []
    for first, second, claim in EXPECTED:
        for percent in RUNS:
            sides = [summary.get(name, {}).get(percent) for name in (first, second)]
            if None in sides:
                continue
            entry: dict[str, Any] = {"first": first, "second": second, "percent": percent, "claim": claim}
            for name, metric in COMPARED.items():
                values = [side[metric]["values"] for side in sides]
                each = [
                    values[0][seed] - values[1][seed] for seed in sorted(values[0].keys() & values[1].keys())
                ]
                if each:
                    entry["seeds"] = len(each)
                    entry[name] = {**_mean_and_spread(each), "verdict": verdict(each)}
            if "seeds" in entry:
                found.append(entry)
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
