"""How far masks of K-Net's resolution can get: the annotated masks of val through its grid, at several sizes.

python benchmarks/study_ceiling.py DATA --sizes 160,384
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch.nn.functional as F
from sp_fast.study.evaluation import OBJECT, as_one_class, average_precision, detection, run_lengths
from sp_fast.study.memory import load_images, pack_masks
from sp_fast.study.source import annotated, open_data

from sp_fast.knet.masks import MASK_STRIDE
from sp_fast.knet.prediction import masks_at_image_size
from sp_fast.knet.targets import TARGET_STRIDE


def ceiling(data: Path, size: int) -> dict[str, float]:
    """COCO's class-agnostic numbers, had each object the best mask of the grid for a prediction."""
    source = open_data(data, size)
    coco = annotated(source, "val")
    own: dict = {image["id"]: [] for image in coco["images"]}
    for one in coco["annotations"]:
        own[one["image_id"]].append(one)
    shapes = [(image["height"], image["width"]) for image in coco["images"]]
    paths = [source.images("val") / image["file_name"] for image in coco["images"]]
    images = load_images(paths, size, shapes)
    labels = {category["id"]: 0 for category in coco["categories"]}
    masks = pack_masks(images, list(own.values()), shapes, labels)
    found = []
    for i, image in enumerate(coco["images"]):
        cells = masks.cells[masks.starts[i] : masks.starts[i + 1]].float() / 255  # at a quarter of the size
        if len(cells):
            inside = F.avg_pool2d(cells, MASK_STRIDE // TARGET_STRIDE).clamp(1e-4, 1 - 1e-4)
            at_image = masks_at_image_size(
                inside.logit(), (size, size), tuple(images.sizes[i].tolist()), shapes[i]
            )
            found += [detection(image["id"], OBJECT, 1.0, one) for one in run_lengths(at_image > 0.5)]
    return average_precision(as_one_class(coco), found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table in markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--sizes", default="160,384", help="longer sides in pixels, with commas")
    given = parser.parse_args(arguments)
    print("| size | AP | AR | AR large | best IoU |\n|---:|---:|---:|---:|---:|")
    for size in map(int, given.sizes.split(",")):
        values = ceiling(given.data, size)
        cells = [f"{values[name]:.1f}" for name in ("ap", "ar", "ar_large", "best_iou")]
        print(f"| {size} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
