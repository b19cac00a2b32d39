"""The demo's numbers: read from the logs, put together, printed."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from sp_fast.jobs import read_scalars

METRIC = "class_agnostic/segm_mAP"

# Name in files -> what it is.
ARMS = {
    "scratch": "none",
    "pseudo_labels": "pseudo labels, no prompts",
    "prompts": "saliency prompts",
}
SHORT = {**ARMS, "pseudo_labels": "pseudo labels"}


def curve(work_dir: Path) -> dict[str, list[float]]:
    """AP over the steps of fine-tuning, in points of 0 to 100."""
    entries = [entry for entry in read_scalars(work_dir) if METRIC in entry]
    return {
        "step": [entry["step"] for entry in entries],
        "ap": [100 * max(entry[METRIC], 0.0) for entry in entries],
        "ap50": [100 * max(entry[f"{METRIC}_50"], 0.0) for entry in entries],
    }


def collect(options: dict[str, Any], proposals: dict, curves: dict) -> dict[str, Any]:
    """All numbers of a demo as plain values, ready for JSON.

    Args:
        options: what was asked for.
        proposals: quality of the proposals by seed.
        curves: by seed and arm, as `curve` gives them.
    """
    summary = {}
    for arm in ARMS:
        final = {name: [curve[arm][name][-1] for curve in curves.values()] for name in ("ap", "ap50")}
        summary[arm] = {name: statistics.mean(values) for name, values in final.items()}
        if len(curves) > 1:
            summary[arm]["ap_spread"] = statistics.stdev(final["ap"])
    return {
        "options": options,
        "seeds": list(curves),
        "metric": "class-agnostic mask AP on the validation scenes, 0 to 100; spread: standard deviation",
        "proposals": proposals,
        "curves": curves,
        "summary": summary,
    }


def conclusion(results: dict[str, Any]) -> str:
    """What the numbers say, and what they do not."""
    seeds = results["seeds"]
    of = {arm: [results["curves"][seed][arm]["ap"][-1] for seed in seeds] for arm in ARMS}
    gain = [a - b for a, b in zip(of["prompts"], of["scratch"], strict=True)]
    own = [a - b for a, b in zip(of["prompts"], of["pseudo_labels"], strict=True)]
    if len(seeds) == 1:
        return (
            f"Pre-training with saliency prompts changes AP by {gain[0]:+.1f} against no pre-training, and "
            f"by {own[0]:+.1f} against pseudo labels without prompts. At this size the prompts' own effect "
            "is within the noise: another seed moves each number by a point or more. To tell it takes "
            "several seeds (--seed 0 --seed 1 --seed 2), real images and a longer schedule."
        )
    spread = statistics.stdev(own)
    within = abs(statistics.mean(own)) <= 2 * spread
    verdict = "within the noise" if within else "above the noise of these seeds"
    return (
        f"Over {len(seeds)} seeds, pre-training with saliency prompts changes AP by "
        f"{statistics.mean(gain):+.1f} ± {statistics.stdev(gain):.1f} against no pre-training, and by "
        f"{statistics.mean(own):+.1f} ± {spread:.1f} against pseudo labels without prompts: the prompts' own "
        f"effect is {verdict} here. It takes real images and a longer schedule to tell."
    )


def print_results(results: dict[str, Any], console: Console) -> None:
    """The table of APs and what it says."""
    table = Table(title="Mask AP (class-agnostic, 0 to 100) by step of fine-tuning", title_justify="left")
    table.add_column("pre-training")
    seeds = results["seeds"]
    first = results["curves"][seeds[0]]["scratch"]["step"]
    for step in first:
        table.add_column(str(step), justify="right")
    table.add_column("AP50", justify="right")
    if len(seeds) > 1:
        table.add_column("spread of AP", justify="right")
    for arm, what in ARMS.items():
        means = [
            statistics.mean(results["curves"][seed][arm]["ap"][k] for seed in seeds)
            for k in range(len(first))
        ]
        row = [what, *(f"{value:.1f}" for value in means), f"{results['summary'][arm]['ap50']:.1f}"]
        if len(seeds) > 1:
            row.append(f"± {results['summary'][arm]['ap_spread']:.1f}")
        table.add_row(*row)
    console.print(table)
    console.print(conclusion(results), highlight=False)
