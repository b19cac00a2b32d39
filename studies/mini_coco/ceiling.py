"""Best scores that masks of K-Net's resolution can reach on val, at several image sizes.

python studies/mini_coco/ceiling.py DATA --sizes 160,384
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import sp_fast.models  # noqa: F401  (gives mmdet the ops it imports)

# isort: split
import torch
import torch.nn.functional as F
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmengine.dataset import pseudo_collate
from mmengine.registry import init_default_scope

from sp_fast.data.coco import load_coco
from sp_fast.data.evaluation import evaluate_coco
from sp_fast.data.rle import run_lengths
from sp_fast.knet.detector import SIZE_DIVISOR
from sp_fast.knet.masks import MASK_STRIDE
from sp_fast.knet.prediction import masks_at_image_size
from sp_fast.knet.targets import TARGET_STRIDE, targets_from_samples
from sp_fast.mmdet_plugin.datasets import InstanceDataset

COLUMNS = {"mAP": "AP", "AR@100": "AR", "AR_l": "AR large", "best_iou": "best IoU"}


def ceiling(data: Path, size: int) -> dict[str, float]:
    """`evaluate_coco` of the annotated masks at K-Net's resolution, for a longer side of `size` pixels."""
    annotations = data / "coco_mini/annotations/instances_val.json"
    init_default_scope("mmdet")
    dataset = InstanceDataset(
        str(annotations),
        images=str(data / "coco_mini/val"),
        class_agnostic=True,
        test_mode=True,
        pipeline=[
            dict(type="ReadImage"),
            dict(type="LoadAnnotations", with_bbox=True, with_mask=True),
            dict(type="Resize", scale=size, keep_ratio=True),
            dict(type="PackInstances", meta_keys=("img_id", "img_shape", "ori_shape")),
        ],
    )
    preprocessor = DetDataPreprocessor(pad_size_divisor=SIZE_DIVISOR)
    found = []
    for i in range(len(dataset)):
        batch = preprocessor(pseudo_collate([dataset[i]]))
        (sample,), padded = batch["data_samples"], tuple(batch["inputs"].shape[-2:])
        masks = targets_from_samples([sample], padded, 1, torch.device("cpu")).masks[0]  # [G, H/4, W/4]
        if len(masks):
            inside = F.avg_pool2d(masks, MASK_STRIDE // TARGET_STRIDE).clamp(1e-4, 1 - 1e-4)
            at_image = masks_at_image_size(inside.logit(), padded, sample.img_shape, sample.ori_shape)
            one = {"image_id": sample.img_id, "category_id": 0, "score": 1.0}
            found += [{**one, "segmentation": rle} for rle in run_lengths((at_image > 0.5).numpy())]
    return evaluate_coco(load_coco(annotations), found, class_agnostic=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a table in markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, metavar="DATA", help="Folder with coco_mini/")
    parser.add_argument("--sizes", default="160,384", help="Longer sides in pixels, separated by commas")
    given = parser.parse_args(arguments)
    print(f"| size | {' | '.join(COLUMNS.values())} |\n|---:|{'---:|' * len(COLUMNS)}")
    for size in map(int, given.sizes.split(",")):
        values = ceiling(given.data, size)
        print(f"| {size} | {' | '.join(f'{100 * values[name]:.1f}' for name in COLUMNS)} |", flush=True)


if __name__ == "__main__":
    main()
