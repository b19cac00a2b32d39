"""One call of `sp-fast study mini-coco`: the study as far as the time allows, then its results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import MMLogger
from rich.console import Console

import sp_fast.models  # noqa: F401  (gives mmdet the ops it imports)

# isort: split
from sp_fast.files import replacing, write_json, write_text
from sp_fast.report.study_figure import write_figure
from sp_fast.report.study_markdown import markdown, write_fragment
from sp_fast.report.study_table import print_table
from sp_fast.study.locks import turn_in
from sp_fast.study.pieces import all_pieces
from sp_fast.study.proposals import QUALITY
from sp_fast.study.results import collect
from sp_fast.study.run import Study, StudyOptions
from sp_fast.study.source import open_data
from sp_fast.study.training import Budget, OutOfTimeError

__all__ = ["QUICK", "QUICK_VARIANTS", "StudyOptions", "run_study"]

# The way in 15 minutes on two cores.
QUICK: dict[str, Any] = dict(
    images=1920, size=128, proposal_size=320, finetune_steps=60, evaluations=1, limit=80
)
QUICK_VARIANTS = ("none", "labels", "cosine")


def run_study(
    data: Path,
    out: Path,
    options: StudyOptions,
    variants: Sequence[str],
    seeds: Sequence[int],
    *,
    device: torch.device,
    minutes: float | None,
    workers: int,
    console: Console,
    command: str,
    docs: Path | None = None,
) -> bool:
    """Runs what is left, and writes the results of all that is finished.

    Args:
        data: folder of the images, or a pack.
        out: folder of everything that is made.
        options: what the numbers depend on.
        variants: names, in the order of the table.
        seeds: of weights and order.
        device: where the models are.
        minutes: when to stop, or None.
        workers: threads that read images.
        console: for progress and the table.
        command: as it was given, for the report.
        docs: page to put the results into.

    Returns:
        Whether everything is finished.
    """
    MMLogger.get_current_instance().setLevel("WARNING")  # a line for each parameter otherwise
    budget = Budget(minutes)
    study = Study(
        open_data(data, options.size),
        out,
        options,
        variants,
        seeds,
        device=device,
        budget=budget,
        console=console,
        workers=workers,
    )
    try:
        study.run()
    except OutOfTimeError:
        console.print(f"the {minutes:g} minutes are over; the same command goes on", highlight=False)
    with turn_in(out):
        results = _write_results(study, out, command, docs)
    print_table(results, console)
    console.print(f"results: {out / 'results.json'}, {out / 'curves.png'}", highlight=False, soft_wrap=True)
    return all(piece.finished for piece in study.pieces)


def _write_results(study: Study, out: Path, command: str, docs: Path | None) -> dict[str, Any]:
    """Of what was asked for, and of all other seeds in `out` what is finished."""
    others = {int(path.name.removeprefix("seed")) for path in out.glob("seed*")} - set(study.seeds)
    pieces = [
        *study.pieces,
        *(piece for piece in all_pieces(out, study.variants, sorted(others)) if piece.finished),
    ]
    quality = {
        path.parent.name: json.loads(path.read_text())
        for path in sorted((out / "proposals").glob(f"*/{QUALITY}"))
    }
    results = collect(study.all_options(), study.settings.title, command, pieces, quality)
    write_json(results, out / "results.json")
    write_figure(out / "curves.png", results)
    write_text(markdown(results, "curves.png"), out / "results.md")
    if docs is not None:
        picture = docs.with_suffix(".png")
        write_fragment(docs, markdown(results, picture.name))
        with replacing(picture) as file:
            file.write((out / "curves.png").read_bytes())
        seed_by_seed = {name: one for name, one in results.items() if name != "runs"}
        write_json(seed_by_seed, docs.with_suffix(".json"))
    return results
