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
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from pycocotools import mask as coco_mask

from sp_fast.data import load_coco, read_image
from sp_fast.ops import match_prompts, roi_average_pool
from sp_fast.proposals import Backbone, SaliencyProposer, build_backbone
from sp_fast.proposals.run import propose_folder

ASSETS = Path(__file__).parents[1] / "docs" / "assets"
# Okabe and Ito's colours, which colour-blind readers can tell apart.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#CC79A7", "#D55E00", "#0072B2")
GREY, INK, FAINT = "#9AA0A6", "#202124", "#5F6368"
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


def draw(steps: Steps, demo: dict[str, Any]) -> Figure:
    """Draw the four panels, 1600 x 1180 pixels."""
    figure: Any = Figure(figsize=(16, 11.8), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        2, 2, left=0.015, right=0.985, top=0.945, bottom=0.015, hspace=0.16, wspace=0.05
    )
    panels = (_photo, _masks, _prompts, _results)
    titles = (
        "1  A photo without labels",
        "2  Saliency masks, as pseudo labels",
        "3  Prompts, added to similar kernels",
        "4  Mask AP with 20 labelled images",
    )
    for place, panel, title in zip(grid, panels, titles, strict=True):
        axes = figure.add_subplot(place)
        axes.set_title(title, loc="left", fontsize=23, color=INK, pad=12, fontweight="bold")
        panel(axes, steps, demo)
    return figure


def _photo(axes: Any, steps: Steps, demo: dict[str, Any]) -> None:
    axes.imshow(steps.image)
    axes.axis("off")


def _masks(axes: Any, steps: Steps, demo: dict[str, Any]) -> None:
    axes.imshow((0.6 * steps.image + 0.4 * 255).astype(np.uint8))
    height, width = steps.image.shape[:2]
    axes.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    axes.axis("off")
    for number in np.argsort(-steps.masks.sum((1, 2))):  # small masks on top
        mask, colour = steps.masks[number], PALETTE[number]
        rgba = np.zeros((*mask.shape, 4))
        rgba[mask] = (*_rgb(colour), 0.55)
        axes.imshow(rgba)
        axes.contour(mask, levels=[0.5], colors=[colour], linewidths=3.5)
        x0, y0, x1, y1 = steps.boxes[number]
        axes.add_patch(
            Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor=colour, lw=2, ls=(0, (4, 3)))
        )


def _prompts(axes: Any, steps: Steps, demo: dict[str, Any]) -> None:
    """Draw crops of the boxes above a matrix of cosines, and the prompt of each kernel at its right."""
    prompts = len(steps.boxes)
    axes.set(xlim=(-1.85, prompts + 1.95), ylim=(KERNELS + 0.85, -1.95))
    axes.axis("off")
    extent = (0, prompts, KERNELS, 0)
    axes.imshow(steps.cosine, cmap="Greys", extent=extent, aspect="auto", alpha=0.75)
    for line in range(KERNELS + 1):
        axes.plot((0, prompts), (line, line), color="white", lw=3)
    for line in range(prompts + 1):
        axes.plot((line, line), (0, KERNELS), color="white", lw=3)
    for column, (x0, y0, x1, y1) in enumerate(steps.boxes.astype(int)):
        axes.imshow(
            steps.image[y0:y1, x0:x1], extent=(column + 0.07, column + 0.93, -0.18, -1.8), aspect="auto"
        )
        frame = Rectangle((column + 0.07, -1.8), 0.86, 1.62, fill=False, edgecolor=PALETTE[column], lw=5)
        axes.add_patch(frame)
    for row, column in enumerate(steps.index):
        axes.plot(column + 0.5, row + 0.5, "o", ms=17, color=PALETTE[column], mec="white", mew=3, zorder=3)
        axes.text(-0.12, row + 0.5, f"kernel {row + 1}", ha="right", va="center", fontsize=17, color=INK)
        axes.text(prompts + 0.42, row + 0.52, "+", ha="center", va="center", fontsize=22, color=INK)
        axes.add_patch(Rectangle((prompts + 0.75, row + 0.16), 1.1, 0.68, color=PALETTE[column]))
    axes.text(
        prompts / 2,
        KERNELS + 0.5,
        "cosine; dot: the largest in its row",
        ha="center",
        va="center",
        fontsize=17,
        color=FAINT,
    )
    axes.text(-0.12, -1.0, "mean feature\nin each box", ha="right", va="center", fontsize=17, color=INK)


def _results(axes: Any, steps: Steps, demo: dict[str, Any]) -> None:
    rows = demo["rows"]
    colours = (GREY, PALETTE[1], PALETTE[5])
    for place, (row, colour) in enumerate(zip(rows, colours, strict=True)):
        axes.barh(place, row["mean"], xerr=row["std"], color=colour, height=0.5, ecolor=INK, capsize=6)
        axes.text(0, place - 0.42, row["label"], fontsize=21, color=INK, va="center")
        text = f"{row['mean']:.1f} ± {row['std']:.1f}"
        axes.text(row["mean"] + row["std"] + 0.35, place, text, fontsize=21, color=INK, va="center")
    axes.set(xlim=(-0.2, 23), ylim=(len(rows) - 0.05, -0.75))
    axes.axis("off")
    axes.text(
        0,
        len(rows) - 0.3,
        "synthetic scenes, AP from 0 to 100, 3 seeds",
        fontsize=18,
        color=FAINT,
        va="center",
    )


def _rgb(colour: str) -> tuple[float, ...]:
    return tuple(int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))


def main() -> None:
    """Compute the steps and write the figure as WebP."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--weights",
        type=Path,
        required=True,
        help="ImageNet weights of MobileNetV2, with torchvision's key names",
    )
    parser.add_argument("--photo", type=Path, default=ASSETS / "figure" / "coffee.jpg", help="Photo")
    parser.add_argument("--out", type=Path, default=ASSETS / "figure.webp", help="Image file to write")
    arguments = parser.parse_args()
    demo = json.loads((ASSETS / "figure" / "demo_results.json").read_text())
    figure: Any = draw(compute(arguments.photo, arguments.weights), demo)
    figure.canvas.draw()
    Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3]).save(
        arguments.out, quality=88, method=6
    )
    print(f"{arguments.out}: {arguments.out.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
