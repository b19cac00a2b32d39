"""Draws the README's figure: a photo, its saliency masks, their prompts, and the AP of the demo.

    python tools/readme_figure.py --weights mobilenet_v2.pth

The photo is scikit-image's `coffee` (Rachel Michetti, CC0). Masks, boxes and cosines are computed here; the
AP is read from docs/assets/figure/demo_results.json, which gives the command that measured it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle
from PIL import Image
from pycocotools import mask as coco_mask

from sp_fast.data.coco import load_coco
from sp_fast.data.images import read_image
from sp_fast.ops import match_prompts, roi_average_pool
from sp_fast.proposals import Backbone, SaliencyProposer, build_backbone
from sp_fast.proposals.run import propose_folder

ASSETS = Path(__file__).parents[1] / "docs" / "assets"
# Okabe and Ito's colours, which colour-blind readers can tell apart.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
GREY = "#9AA0A6"
SIDE = 512  # longer side in pixels of the image from which features are computed
OPTIONS: dict[str, Any] = dict(
    similarity="cosine",
    center=True,
    threshold=0.6,
    iou_threshold=0.25,
    min_area=4,
    max_masks=6,
    min_center_height=0.2,
    max_box_width=0.9,
)
KERNELS = 8


class Steps(NamedTuple):
    """Data shown in the panels.

    Attributes:
        image: uint8 [H, W, 3], RGB.
        masks: bool [L, H, W], best first.
        boxes: float [L, 4], xyxy in pixels.
        cosine: float [KERNELS, L], similarity of each kernel with each prompt.
        index: int [KERNELS], the prompt that each kernel takes.
    """

    image: np.ndarray
    masks: np.ndarray
    boxes: np.ndarray
    cosine: np.ndarray
    index: np.ndarray


def compute(photo: Path, weights: Path) -> Steps:
    """Compute the masks of the photo and match their prompts with randomly initialised kernels."""
    backbone = build_backbone("mobilenet_v2", weights=weights)
    with tempfile.TemporaryDirectory() as folder:
        images, out = Path(folder, "images"), Path(folder, "masks.json")
        images.mkdir()
        shutil.copy(photo, images)
        propose_folder(images, out, SaliencyProposer(backbone, **OPTIONS), size=SIDE)
        proposals = load_coco(out)["annotations"]
    image = read_image(photo)
    masks = np.stack([coco_mask.decode(one["segmentation"]) for one in proposals]).astype(bool)
    boxes = np.array([one["bbox"] for one in proposals], dtype=np.float32)
    boxes[:, 2:] += boxes[:, :2]
    cosine, index = _match(image, boxes, backbone)
    return Steps(image, masks, boxes, cosine, index)


def _match(image: np.ndarray, boxes: np.ndarray, backbone: Backbone) -> tuple[np.ndarray, np.ndarray]:
    scale = SIDE / max(image.shape[:2])
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    small = torch.from_numpy(np.array(Image.fromarray(image).resize(size))).permute(2, 0, 1)
    maps = backbone.features([small]).maps
    prompts = roi_average_pool(maps, torch.from_numpy(boxes)[None] * scale / backbone.stride)
    kernels = torch.randn(KERNELS, maps.shape[1], generator=torch.Generator().manual_seed(0))
    index = match_prompts(kernels, prompts)[1][0]
    cosine = torch.cosine_similarity(kernels[:, None], prompts, dim=-1)
    return cosine.numpy(), index.numpy()


def draw(steps: Steps, results: dict[str, Any]) -> plt.Figure:
    """Draw the four panels, 1600 x 1180 pixels."""
    plt.rcParams.update({"font.size": 18, "axes.titlesize": 23, "axes.titleweight": "bold"})
    grid = dict(left=0.015, right=0.985, top=0.945, bottom=0.04, hspace=0.14, wspace=0.05)
    figure, ((photo, masks), (prompts, bars)) = plt.subplots(2, 2, figsize=(16, 11.8), gridspec_kw=grid)
    photo.imshow(steps.image)
    _draw_masks(masks, steps)
    _draw_prompts(prompts, steps)
    _draw_results(bars, results["rows"], results["seeds"])
    titles = {
        photo: "1  A photo without labels",
        masks: "2  Saliency masks, as pseudo labels",
        prompts: "3  Prompts, added to similar kernels",
        bars: "4  Mask AP with 20 labelled images",
    }
    for axes, title in titles.items():
        axes.set_title(title, loc="left", pad=12)
        axes.spines[:].set_visible(False)
        axes.set(xticks=[], yticks=[])
    return figure


def _draw_masks(axes: plt.Axes, steps: Steps) -> None:
    axes.imshow((0.6 * steps.image + 0.4 * 255).astype(np.uint8))
    axes.autoscale(False)
    for number in np.argsort(-steps.masks.sum((1, 2))):  # small masks on top
        mask, colour = steps.masks[number], PALETTE[number]
        axes.imshow(mask[..., None] * to_rgba(colour, 0.55))
        axes.contour(mask, levels=[0.5], colors=[colour], linewidths=3.5)
        x0, y0, x1, y1 = steps.boxes[number]
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, lw=2, ls="--"))


def _draw_prompts(axes: plt.Axes, steps: Steps) -> None:
    """Draw crops of the boxes above a matrix of cosines, and the prompt of each kernel at its right."""
    prompts, rows = len(steps.boxes), np.arange(KERNELS) + 0.5
    colours = [PALETTE[column] for column in steps.index]
    axes.pcolormesh(steps.cosine, cmap="Greys", alpha=0.75, edgecolors="white", lw=3)
    axes.scatter(steps.index + 0.5, rows, s=290, c=colours, edgecolors="white", linewidths=3, zorder=3)
    axes.plot(np.full(KERNELS, prompts + 0.42), rows, "k+", ms=12, mew=2)
    axes.barh(rows, 1.1, left=prompts + 0.75, height=0.68, color=colours)
    for column, (x0, y0, x1, y1) in enumerate(steps.boxes.astype(int)):
        extent = (column + 0.07, column + 0.93, -0.18, -1.8)
        axes.imshow(steps.image[y0:y1, x0:x1], extent=extent, aspect="auto")
        axes.add_patch(Rectangle((extent[0], -1.8), 0.86, 1.62, fill=False, edgecolor=PALETTE[column], lw=5))
    labels = {-1: "mean feature\nin each box", **{row: f"kernel {row + 0.5:.0f}" for row in rows}}
    for row, label in labels.items():
        axes.text(-0.12, row, label, ha="right", va="center")
    axes.set(xlim=(-1.85, prompts + 1.95), ylim=(KERNELS, -1.95))
    axes.set_xlabel("cosine; dot: the largest in its row")


def _draw_results(axes: plt.Axes, rows: list[dict[str, Any]], seeds: int) -> None:
    means, deviations = [row["mean"] for row in rows], [row["std"] for row in rows]
    colours = (GREY, PALETTE[1], PALETTE[5])
    bars = axes.barh(range(len(rows)), means, 0.5, xerr=deviations, color=colours, capsize=6)
    axes.bar_label(bars, [f"{row['mean']:.1f} ± {row['std']:.1f}" for row in rows], padding=8, fontsize=21)
    for place, row in enumerate(rows):
        axes.text(0, place - 0.42, row["label"], fontsize=21, va="center")
    ends = [mean + deviation for mean, deviation in zip(means, deviations, strict=True)]
    axes.set(xlim=(-0.2, 1.35 * max(ends)), ylim=(len(rows) - 0.4, -0.7))
    axes.set_xlabel(f"synthetic scenes, AP from 0 to 100, {seeds} seeds", loc="left")


def main() -> None:
    """Compute the steps and write the figure as WebP."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--weights", type=Path, required=True, help="ImageNet weights of torchvision's MobileNetV2"
    )
    parser.add_argument("--photo", type=Path, default=ASSETS / "figure" / "coffee.jpg", help="Photo")
    parser.add_argument("--out", type=Path, default=ASSETS / "figure.webp", help="WebP file to write")
    arguments = parser.parse_args()
    results = json.loads((ASSETS / "figure" / "demo_results.json").read_text())
    figure = draw(compute(arguments.photo, arguments.weights), results)
    figure.savefig(arguments.out, pil_kwargs={"quality": 88, "method": 6})
    print(f"{arguments.out}: {arguments.out.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
