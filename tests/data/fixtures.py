"""A small folder of annotated images with seeds."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from safetensors.torch import save_file


def encode(mask):
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


@pytest.fixture
def scenes(tmp_path):
    """Three images of 32 x 48 with 3, 0 and 2 objects; each object has another grey value and seed.

    Annotation k covers a rectangle that is painted in grey 40 (k + 1), and its seed is [k, 40 (k + 1)].
    The annotations are stored in a different order from the seeds.
    """
    folder = tmp_path / "images"
    folder.mkdir()
    rectangles = {
        0: [(2, 3, 12, 9), (20, 4, 8, 20), (34, 14, 12, 14)],
        1: [],
        2: [(1, 1, 9, 9), (25, 20, 20, 10)],
    }
    images, annotations, seeds = [], [], []
    for index, boxes in rectangles.items():
        pixels = np.zeros((32, 48, 3), np.uint8)
        images.append({"id": 10 + index, "file_name": f"{index}.png", "height": 32, "width": 48})
        for x, y, w, h in boxes:
            row = len(seeds)
            mask = np.zeros((32, 48), bool)
            mask[y : y + h, x : x + w] = True
            pixels[mask] = 40 * (row + 1)
            seeds.append([row, 40 * (row + 1)])
            annotations.append(
                {
                    "id": row + 1,
                    "image_id": 10 + index,
                    "category_id": 3 + 5 * (row % 2),
                    "bbox": [x, y, w, h],
                }
                | {"segmentation": encode(mask), "area": w * h, "iscrowd": 0, "seed_row": row}
            )
        Image.fromarray(pixels).save(folder / f"{index}.png")
    categories = [{"id": 8, "name": "dog"}, {"id": 3, "name": "cat"}]
    coco = {"images": images, "annotations": annotations[::-1], "categories": categories}
    (tmp_path / "masks.json").write_text(json.dumps(coco))
    save_file({"seeds": torch.tensor(seeds, dtype=torch.float16)}, tmp_path / "masks.seeds.safetensors")
    return tmp_path
