"""The study's table on the terminal, 80 columns."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from sp_fast.study.pieces import PERCENTS
from sp_fast.study.variants import VARIANTS


def value(entry: dict[str, Any] | None) -> str:
    """Mean and spread of a number, to three figures, or a dash where there is none."""
    if entry is None:
        return "-"
    digits = _digits(entry)
    spread = "" if entry["spread"] is None else f" ± {entry['spread']:.{digits}f}"
    return f"{round(entry['mean'], digits) + 0.0:.{digits}f}{spread}"  # no -0.0


def change(entry: dict[str, Any]) -> str:
    """Mean and spread of a difference, with its sign."""
    digits = _digits(entry)
    spread = "" if entry["spread"] is None else f" ± {entry['spread']:.{digits}f}"
    return f"{round(entry['mean'], digits) + 0.0:+.{digits}f}{spread}"


def _narrow(text: str) -> str:
    return text.replace(" ", "")


def _digits(entry: dict[str, Any]) -> int:
    return 2 if abs(entry["mean"]) < 10 else 1


def labelled_images(results: dict[str, Any]) -> str:
    """How many images each fine-tuning has, as far as is known."""
    counts = {percent: _labelled(results, percent) for percent in PERCENTS}
    return ", ".join(f"{percent} %: {count} images" for percent, count in counts.items() if count)


def print_table(results: dict[str, Any], console: Console) -> None:
    """AP of every variant that is finished, what it says of the paper's claims, and what is left."""
    table = Table(
        title=f"Mask AP on val, {results['title']}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("pre-training", no_wrap=True)
    for percent in PERCENTS:
        for what in ("objects", "80 cl."):
            table.add_column(f"{percent} %\n{what}", justify="right", no_wrap=True)
    table.add_column("seeds", justify="right")
    for variant in results["variants"]:
        own = results["summary"].get(variant, {})
        cells = []
        for percent in PERCENTS:
            entry = own.get(str(percent), {})
            cells += [_narrow(value(entry.get(name))) for name in ("class_agnostic", "classes")]
        tuned = [own[str(percent)] for percent in PERCENTS if str(percent) in own]
        seeds = [len(entry["class_agnostic"]["values"]) for entry in tuned]
        table.add_row(VARIANTS[variant].title, *cells, str(max(seeds, default=0)))
    console.print(table)
    labels = labelled_images(results)
    if labels:
        console.print(f"objects: class-agnostic; 80 cl.: over all classes; {labels}", highlight=False)
    for one in results["differences"]:
        console.print(
            f"{one['first']} - {one['second']}, {one['percent']} %: {_narrow(change(one['ap']))} "
            f"({one['ap']['verdict']})",
            highlight=False,
        )
    if results["missing"]:
        count = len(results["missing"])
        left = "1 run is" if count == 1 else f"{count} runs are"
        console.print(f"{left} left; the same command goes on", highlight=False)


def _labelled(results: dict[str, Any], percent: int) -> int | None:
    for kinds in results["runs"].values():
        for run in kinds.get(f"finetune-{percent}", {}).values():
            return run["labelled"]["images"]
    return None
