"""The demo's picture: proposals, predictions of the three models, AP curves."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from pycocotools import mask as coco_mask

from sp_fast.data.coco import load_coco
from sp_fast.data.images import read_image
from sp_fast.data.rle import to_rle
from sp_fast.files import replacing
from sp_fast.report.demo_results import ARMS, SHORT, conclusion

COLOURS = {"scratch": "#8a8f98", "pseudo_labels": "#2f7fd0", "prompts": "#e0672f"}
# Told apart on any ground, and by the colour-blind (Okabe and Ito).
_PALETTE = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#ffffff"]
_SCENES = 8
_ROWS = 4
_SHOWN_SCORE = 0.3


def write_figure(path: Path, folder: Path, work_dirs: dict[str, Path], results: dict[str, Any]) -> None:
    """Write the report as one PNG.

    Args:
        path: the file, written beside first and then renamed.
        folder: of one seed: the set and the proposals.
        work_dirs: of the arms' fine-tuning, with the last evaluation's `predictions.segm.json`.
        results: as `sp_fast.demo.run_demo` gives them.
    """
    figure: Any = Figure(figsize=(17, 14.2), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    figure.suptitle(
        "Saliency-prompt pre-training on a synthetic low-data set", x=0.02, y=0.988, ha="left", fontsize=21
    )
    top, bottom = figure.add_gridspec(
        2, 1, height_ratios=(2, 4.4), left=0.02, right=0.985, top=0.925, bottom=0.02, hspace=0.17
    )
    _proposals(figure, top, folder, results)
    left, right = bottom.subgridspec(1, 2, width_ratios=(4, 2.9), wspace=0.1)
    _predictions(figure, left, folder, work_dirs, results)
    above, below, words = right.subgridspec(3, 1, height_ratios=(1.6, 0.9, 0.42), hspace=0.36)
    _curves(figure.add_subplot(above), results)
    _summary(figure.add_subplot(below), results)
    box = words.get_position(figure)
    text = "\n".join(textwrap.wrap(conclusion(results), 78))
    figure.text(box.x0 - 0.03, box.y1 + 0.005, text, fontsize=12, va="top", ha="left", linespacing=1.4)
    with replacing(path) as file:
        figure.savefig(file, format="png")


def overlay(image: np.ndarray, masks: Sequence[np.ndarray], scale: int = 3) -> np.ndarray:
    """The image, enlarged, with each mask tinted and outlined in a colour of its own; the smallest on top.

    Args:
        image: uint8 [H, W, 3].
        masks: bool [H, W] each.
        scale: whole factor of enlargement.

    Returns:
        uint8 [scale H, scale W, 3].
    """
    big: np.ndarray = image.repeat(scale, 0).repeat(scale, 1).astype(np.float32)
    for k in sorted(range(len(masks)), key=lambda k: -masks[k].sum()):
        code = _PALETTE[k % len(_PALETTE)]
        colour = np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)], np.float32)
        mask = masks[k].repeat(scale, 0).repeat(scale, 1)
        inner = np.pad(mask, 2)
        inner = inner[:-4, 2:-2] & inner[4:, 2:-2] & inner[2:-2, :-4] & inner[2:-2, 4:]
        big[mask] = 0.6 * big[mask] + 0.4 * colour
        big[mask & ~inner] = colour
    return np.rint(big).astype(np.uint8)


def _masks(annotations: list[dict], size: tuple[int, int]) -> list[np.ndarray]:
    return [coco_mask.decode(to_rle(one["segmentation"], *size)).astype(bool) for one in annotations]


def _picture(axes: Any, image: np.ndarray, label: str | None = None, colour: str = "black") -> None:
    axes.imshow(image, interpolation="antialiased")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    if label is not None:
        axes.set_title(label, fontsize=12.5, color=colour, pad=6)


def _heading(figure: Any, spec: Any, text: str, above: float = 0.006) -> None:
    box = spec.get_position(figure)
    figure.text(box.x0, box.y1 + above, text, fontsize=14, fontweight="bold", ha="left", va="bottom")


def _proposals(figure: Any, spec: Any, folder: Path, results: dict[str, Any]) -> None:
    coco = load_coco(folder / "proposals.json")
    images = coco["images"][:_SCENES]
    quality = next(iter(results["proposals"].values()))
    _heading(
        figure,
        spec,
        "Unlabelled scenes and the six best of their saliency masks "
        f"({quality['masks_per_image']:.0f} masks an image; best IoU with an object: mean "
        f"{quality['mean_best_iou']:.2f}, above 0.5 for {quality['share_above_half']:.0%})",
    )
    grid = spec.subgridspec(2, _SCENES, hspace=0.05, wspace=0.05)
    for column, info in enumerate(images):
        image = read_image(folder / "set" / "unlabelled" / info["file_name"])
        own = [one for one in coco["annotations"] if one["image_id"] == info["id"]]
        best = sorted(own, key=lambda one: -one["score"])[:6]
        _picture(figure.add_subplot(grid[0, column]), image)
        _picture(figure.add_subplot(grid[1, column]), overlay(image, _masks(best, image.shape[:2])))


def _predictions(
    figure: Any, spec: Any, folder: Path, work_dirs: dict[str, Path], results: dict[str, Any]
) -> None:
    coco = load_coco(folder / "set" / "validation.json")
    _heading(
        figure,
        spec,
        f"Validation scenes after fine-tuning (predictions with a score from {_SHOWN_SCORE})",
        above=0.036,
    )
    predicted = {}
    for arm, work_dir in work_dirs.items():
        predicted[arm] = json.loads((work_dir / "predictions.segm.json").read_text())
    # The scenes with the most objects say the most.
    counts = {info["id"]: 0 for info in coco["images"]}
    for one in coco["annotations"]:
        counts[one["image_id"]] += 1
    images = sorted(coco["images"], key=lambda info: -counts[info["id"]])[:_ROWS]
    grid = spec.subgridspec(_ROWS, 1 + len(ARMS), hspace=0.05, wspace=0.05)
    first = results["seeds"][0]
    for row, info in enumerate(images):
        image = read_image(folder / "set" / "validation" / info["file_name"])
        truth = [one for one in coco["annotations"] if one["image_id"] == info["id"]]
        label = "objects" if row == 0 else None
        _picture(figure.add_subplot(grid[row, 0]), overlay(image, _masks(truth, image.shape[:2])), label)
        for column, arm in enumerate(ARMS, start=1):
            own = [one for one in predicted[arm] if one["image_id"] == info["id"]]
            shown = sorted(
                (one for one in own if one["score"] >= _SHOWN_SCORE), key=lambda one: -one["score"]
            )
            label = f"{SHORT[arm]}\nAP {results['curves'][first][arm]['ap'][-1]:.1f}" if row == 0 else None
            axes = figure.add_subplot(grid[row, column])
            _picture(axes, overlay(image, _masks(shown, image.shape[:2])), label, COLOURS[arm])


def _curves(axes: Any, results: dict[str, Any]) -> None:
    for arm, what in ARMS.items():
        runs = [results["curves"][seed][arm] for seed in results["seeds"]]
        steps, values = runs[0]["step"], np.array([run["ap"] for run in runs])
        axes.plot(
            steps, values.mean(0), marker="o", markersize=7, linewidth=2.5, color=COLOURS[arm], label=what
        )
        if len(runs) > 1:
            axes.fill_between(
                steps, values.min(0), values.max(0), color=COLOURS[arm], alpha=0.15, linewidth=0
            )
    labelled = results["options"]["data"]["labelled"]
    title = f"Mask AP while fine-tuning on {labelled} labelled scenes"
    if len(results["seeds"]) > 1:
        title += f"\nmean and range of {len(results['seeds'])} seeds"
    axes.set_title(title, fontsize=14, fontweight="bold", loc="left", pad=10)
    axes.set_xlabel("step of fine-tuning", fontsize=12)
    axes.set_ylabel("class-agnostic mask AP", fontsize=12)
    axes.set_ylim(0, max(1.4 * axes.dataLim.y1, 1))  # room for the legend
    axes.set_xticks(steps)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", fontsize=11.5, frameon=False, title="pre-training", alignment="left")


def _summary(axes: Any, results: dict[str, Any]) -> None:
    arms = list(ARMS)
    values = [results["summary"][arm]["ap"] for arm in arms]
    spread = [results["summary"][arm].get("ap_spread", 0.0) for arm in arms]
    bars = axes.barh(range(len(arms)), values, color=[COLOURS[arm] for arm in arms], height=0.62)
    if len(results["seeds"]) > 1:
        axes.errorbar(values, range(len(arms)), xerr=spread, fmt="none", ecolor="#333333", capsize=4)
    for bar, value, error in zip(bars, values, spread, strict=True):
        text = f"{value:.1f} ± {error:.1f}" if len(results["seeds"]) > 1 else f"{value:.1f}"
        axes.annotate(
            text,
            (value + error, bar.get_y() + bar.get_height() / 2),
            (7, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(range(len(arms)), [SHORT[arm].replace(" ", "\n") for arm in arms], fontsize=12)
    axes.invert_yaxis()
    axes.set_xlim(right=max(max(v + e for v, e in zip(values, spread, strict=True)) * 1.2, 1))
    axes.set_title("AP at the end, by pre-training", fontsize=14, fontweight="bold", loc="left", pad=10)
    axes.spines[["top", "right"]].set_visible(False)
