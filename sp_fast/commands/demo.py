"""`sp-fast demo`: the experiment `demo`."""

from pathlib import Path
from typing import Annotated

import typer

from sp_fast.commands.experiment import run_and_report, seed_numbers

EXAMPLES = """
\b
Examples:
  sp-fast demo
  With three seeds, for mean and spread:
    sp-fast demo --seeds 0,1,2
"""


def demo(
    out: Annotated[Path, typer.Option(help="Folder for scenes, runs and report.")] = Path("runs/demo"),
    seeds: Annotated[str, typer.Option(help="Random seeds, comma-separated.")] = "0",
    minutes: Annotated[
        float | None, typer.Option(help="Time limit in minutes; run again to continue.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Smoke run of a few steps on a few scenes.")] = False,
) -> None:
    """Pre-train on unlabelled scenes, fine-tune on 20 labelled ones, compare: 8 minutes on 2 cores.

    Makes a synthetic set, proposes saliency masks, trains a small K-Net in three ways and writes report.html.
    If interrupted, run the same command again to continue. Short for `sp-fast experiment run demo`, which has
    more options.
    """
    run_and_report("demo", out, {"quick": True} if quick else {}, seeds=seed_numbers(seeds), minutes=minutes)
