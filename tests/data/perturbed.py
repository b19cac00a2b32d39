"""Detections made from annotated objects, as good and as bad as a model's."""

import numpy as np
from pycocotools import mask as coco_mask

from sp_fast.data.rle import run_lengths, to_rle


def perturbed(truth, seed=0):
    """Objects shifted, enlarged, cut, dropped, duplicated and mislabelled, with random scores and ties.

    Some images get none. Each detection has a mask and its box.
    """
    generator = np.random.default_rng(seed)
    categories = [one["id"] for one in truth["categories"]]
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    empty = {image for image in sizes if generator.random() < 0.05}
    found = []
    for one in truth["annotations"]:
        height, width = sizes[one["image_id"]]
        mask = coco_mask.decode(to_rle(one["segmentation"], height, width)).astype(bool)
        if one["image_id"] in empty or generator.random() < 0.15:
            continue
        for _ in range(1 + int(generator.random() < 0.3)):
            changed = np.roll(mask, generator.integers(-4, 5, 2), (0, 1))
            for _ in range(int(generator.integers(4))):
                changed = changed | np.roll(changed, 1, 0) | np.roll(changed, 1, 1)
            if generator.random() < 0.1:
                changed[:, : width // 2] = False
            rle = run_lengths(changed[None])[0]
            wrong = generator.random() < 0.2
            first = {
                "image_id": one["image_id"],
                "category_id": int(generator.choice(categories)) if wrong else one["category_id"],
                "score": round(float(generator.random()), 2),
                "segmentation": rle,
                "bbox": coco_mask.toBbox(rle).tolist(),
            }
            again = {"category_id": int(generator.choice(categories)), "score": float(generator.random())}
            found += [first, first | again] if generator.random() < 0.1 else [first]
    return found
