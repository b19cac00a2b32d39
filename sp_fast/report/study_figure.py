"""The study's learning curves as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sp_fast.files import replacing
from sp_fast.study.pieces import PERCENTS
from sp_fast.study.variants import VARIANTS

# Okabe and Ito's, and grey: told apart by the colour-blind; boxes are dashed in the colour of their masks.
_STYLES = {
    "none": ("#8a8f98", "-"),
    "labels": ("#0072b2", "-"),
    "random": ("#e69f00", "-"),
    "sequential": ("#009e73", "-"),
    "cosine": ("#d55e00", "-"),
    "cosine-no-kernel-loss": ("#cc79a7", "-"),
    "cosine-centered": ("#cc79a7", "--"),
    "cosine-after-head": ("#56b4e9", "-"),
    "cosine-p2": ("#8c510a", "-"),
    "boxes": ("#0072b2", "--"),
    "boxes-cosine": ("#d55e00", "--"),
    "official": ("#000000", "-"),
}


def write_figure(path: Path, results: dict[str, Any]) -> None:
    """Writes the losses, AP and AR on val over steps as a PNG; mean and range over seeds."""
    figure: Any = Figure(figsize=(19, 9.4), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 4)
    seeds = len(results["seeds"])
    figure.suptitle(
        f"mini-COCO: {results['title']}, {results['options']['size']} pixels, "
        f"{seeds} seed{'s' if seeds > 1 else ''}",
        x=0.02,
        ha="left",
        fontsize=16,
    )
    batch = results["options"]["pretrain"]["batch_size"]
    _lines(axes[0, 0], results, "pretrain", "mask loss of the last stage", batch, ("s2_loss_mask",))
    axes[0, 0].set_title("Pre-training: mask loss", loc="left", fontweight="bold")
    axes[0, 0].set_xlabel("images")
    _lines(axes[1, 0], results, "pretrain", "dice loss of the last stage", batch, ("s2_loss_dice",))
    axes[1, 0].set_title("Pre-training: dice loss", loc="left", fontweight="bold")
    axes[1, 0].set_xlabel("images")
    for row, percent in enumerate(PERCENTS):
        kind = f"finetune-{percent}"
        _lines(axes[row, 1], results, kind, "sum of all losses", 1, ("loss",))
        axes[row, 1].set_title(f"Fine-tuning on {percent} %: loss", loc="left", fontweight="bold")
        axes[row, 1].set_xlabel("step")
        for column, metric in ((2, "ap"), (3, "ar")):
            _on_val(axes[row, column], results, kind, metric)
            title = f"Fine-tuning on {percent} %: {metric.upper()} on val"
            axes[row, column].set_title(title, loc="left", fontweight="bold")
            axes[row, column].set_xlabel("step")
    for one in axes.flat:
        one.grid(alpha=0.3)
        one.spines[["top", "right"]].set_visible(False)
    handles, labels = axes[0, 2].get_legend_handles_labels()
    if not handles:
        handles, labels = axes[0, 0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="lower center", ncols=6, frameon=False, fontsize=11)
    figure.tight_layout(rect=(0, 0.07, 1, 0.97))
    with replacing(path) as file:
        figure.savefig(file, format="png")


def _lines(
    axes: Any, results: dict[str, Any], kind: str, label: str, unit: int, names: tuple[str, ...]
) -> None:
    axes.set_ylabel(label)
    for variant in results["variants"]:
        runs = list(results["runs"].get(variant, {}).get(kind, {}).values())
        curves = [[sum(entry.get(name, 0.0) for name in names) for entry in run["log"]] for run in runs]
        if curves:
            steps = [unit * entry["step"] for entry in runs[0]["log"]]
            _draw(axes, variant, steps, np.array(curves))


def _on_val(axes: Any, results: dict[str, Any], kind: str, metric: str) -> None:
    axes.set_ylabel(f"class-agnostic mask {metric.upper()}")
    for variant in results["variants"]:
        of_kind = results["runs"].get(variant, {})
        curves, steps = [], []
        for seed, run in of_kind.get(kind, {}).items():
            # A pre-trained model is measured before its first step as well.
            before = of_kind.get("pretrain", {}).get(seed, {}).get("evaluations", [])
            entries = [{**one, "step": 0} for one in before[-1:]] + run["evaluations"]
            steps = [entry["step"] for entry in entries]
            curves.append([entry["class_agnostic"][metric] for entry in entries])
        if curves:
            _draw(axes, variant, steps, np.array(curves), marker="o")
    axes.set_ylim(bottom=0)


def _draw(axes: Any, variant: str, steps: list, curves: np.ndarray, marker: str | None = None) -> None:
    colour, line = _STYLES[variant]
    title = VARIANTS[variant].title
    axes.plot(steps, curves.mean(0), line, color=colour, marker=marker, linewidth=1.8, label=title)
    if len(curves) > 1:
        axes.fill_between(steps, curves.min(0), curves.max(0), color=colour, alpha=0.08, linewidth=0)
