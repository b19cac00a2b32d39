"""The study's pseudo labels: made once for each backbone and preset, shared by the variants, and scored."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from rich.console import Console
from safetensors.torch import load_file
from torch import Tensor

from sp_fast.data.coco import load_coco, save_coco
from sp_fast.data.rle import to_rle
from sp_fast.files import write_json
from sp_fast.progress import RunProgress
from sp_fast.proposals import SaliencyProposer, build_backbone
from sp_fast.proposals.random_boxes import write_random_boxes
from sp_fast.proposals.run import propose_folder
from sp_fast.proposals.scores import score_proposals
from sp_fast.proposals.store import seeds_path
from sp_fast.study.memory import Images, Masks, pack_masks
from sp_fast.study.source import FOLDERS, LABELLED, StudyData
from sp_fast.study.training import Budget
from sp_fast.study.variants import RANDOM_BOXES

QUALITY = "quality.json"
BOXES = 20


def make_proposals(
    data: StudyData,
    options: dict[str, Any],
    preset: str,
    folder: Path,
    *,
    size: int,
    device: torch.device,
    workers: int,
    budget: Budget,
    console: Console,
) -> dict[str, Any]:
    """Proposals of every split, unless they are there; interrupted, they go on where they were.

    Args:
        data: where the images are.
        options: `backbone`, `style`, `stage` and `weights`, as the study's config has them.
        preset: `paper`, `official` or `random`.
        folder: where `<split>.json` and the seeds go.
        size: longer side of the images in pixels for the backbone.
        device: of the backbone.
        workers: threads that read images.
        budget: of this call.
        console: for the progress.

    Returns:
        How well they cover the annotated objects of `train` and `val`, by split.
    """
    stamp = folder / QUALITY
    if stamp.is_file():
        return json.loads(stamp.read_text())
    proposer = None
    for split in FOLDERS:
        out = folder / f"{split}.json"
        if out.is_file():
            continue
        if preset == RANDOM_BOXES:
            write_random_boxes(data.images(split), out, count=BOXES)
            continue
        if proposer is None:
            proposer = SaliencyProposer(_backbone(data, options), preset=preset)
        console.print(f"proposals, preset {preset}, {split}", highlight=False)
        with RunProgress("images", console) as progress:
            propose_folder(
                data.images(split),
                out,
                proposer,
                size=size,
                device=device,
                workers=workers,
                progress=_within(budget, progress),
            )
    quality = {split: score(data, folder / f"{split}.json", split) for split in LABELLED}
    write_json(quality, stamp)
    return quality


def _backbone(data: StudyData, options: dict[str, Any]) -> Any:
    options = dict(options)
    weights = data.weights(options.pop("weights", None))
    return build_backbone(options.pop("backbone"), weights=weights, **options)


def _within(budget: Budget, progress: Callable[[int, int], None]) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        progress(done, total)
        if done < total:
            budget.check()

    return report


def score(data: StudyData, path: Path, split: str) -> dict[str, Any]:
    """Best IoU of each annotated object with a proposal, by size of the object."""
    scaled = path.with_name(f"{split}.scaled.json")
    try:
        if data.packed_size is not None:
            save_coco(at_original_size(load_coco(path), load_coco(data.annotations(split))), scaled)
            path = scaled
        scores = score_proposals(path, data.annotations(split))
    finally:
        scaled.unlink(missing_ok=True)
    by_size = {
        name: {key: None if value != value else value for key, value in dataclasses.asdict(one).items()}
        for name, one in scores.by_size.items()
    }
    return {"images": scores.images, "masks_per_image": scores.masks_per_image, "by_size": by_size}


def at_original_size(proposals: dict[str, Any], annotated: dict[str, Any]) -> dict[str, Any]:
    """Proposals of resized copies, brought to the size of the originals (nearest cell)."""
    shapes = {image["file_name"]: (image["height"], image["width"]) for image in annotated["images"]}
    images = [image for image in proposals["images"] if image["file_name"] in shapes]
    by_id = {image["id"]: image for image in images}
    scaled = []
    for one in proposals["annotations"]:
        image = by_id.get(one["image_id"])
        if image is None:
            continue
        height, width = shapes[image["file_name"]]
        mask = coco_mask.decode(to_rle(one["segmentation"], image["height"], image["width"]))
        y = np.arange(height) * image["height"] // height
        x = np.arange(width) * image["width"] // width
        rle = coco_mask.encode(np.asfortranarray(mask[y][:, x]))
        counts = rle["counts"].decode("ascii")
        scaled.append(
            {
                "id": one["id"],
                "image_id": one["image_id"],
                "category_id": one["category_id"],
                "segmentation": {"size": [height, width], "counts": counts},
            }
        )
    resized = []
    for image in images:
        height, width = shapes[image["file_name"]]
        resized.append(dict(image, height=height, width=width))
    return {"images": resized, "annotations": scaled, "categories": proposals["categories"]}


def load_proposals(folder: Path, names: dict[str, list[str]], images: Images, workers: int = 4) -> Masks:
    """The proposals of images.

    Args:
        folder: of :func:`make_proposals`.
        names: of each split that is wanted, its images' names in the order of `images`.
        images: all of them, split after split.
        workers: threads.
    """
    annotations: list[list[dict]] = []
    shapes: list[tuple[int, int]] = []
    seeds: list[Tensor] = []
    for split in names:
        path = folder / f"{split}.json"
        coco = load_coco(path)
        before = sum(len(part) for part in seeds)
        if seeds_path(path).is_file():
            seeds.append(load_file(seeds_path(path))["seeds"])
        of_image: dict[Any, list[dict]] = {image["id"]: [] for image in coco["images"]}
        for one in coco["annotations"]:
            row = {"seed_row": one["seed_row"] + before} if "seed_row" in one else {}
            of_image[one["image_id"]].append({**one, **row})
        by_name = {image["file_name"]: image for image in coco["images"]}
        for name in names[split]:
            annotations.append(of_image[by_name[name]["id"]] if name in by_name else [])
            shapes.append((by_name[name]["height"], by_name[name]["width"]) if name in by_name else (1, 1))
    return pack_masks(
        images, annotations, shapes, {1: 0}, torch.cat(seeds) if seeds else None, workers=workers
    )
