"""An experiment and finished runs of it with made-up numbers, so that reports need no training."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from sp_fast.experiments import Comparison, Experiment, Proposals, Row, Training
from sp_fast.experiments.experiment import PRETRAIN
from sp_fast.experiments.plan import Plan, Run
from sp_fast.files import write_json

AP, AP50 = "coco/segm_mAP", "coco/segm_mAP_50"
HASH = "0123456789abcdef" * 4


def experiment(images: Path) -> Experiment:
    """Three rows, of which two share their proposals, and two sets of labels."""
    proposals = Proposals(str(images), options={"grid": (4, 4)}, truth=str(images / "truth.json"))
    pretrain = Training("demo/pretrain", str(images), steps=20)
    plain = Training("demo/pretrain", str(images), steps=20, options={"model.prompts.strategy": "none"})
    tuned = {
        name: Training(
            "demo/finetune",
            str(images),
            annotations=str(images / "truth.json"),
            val_images=str(images),
            val_annotations=str(images / "truth.json"),
            steps=steps,
        )
        for name, steps in (("10 %", 40), ("100 %", 80))
    }
    return Experiment(
        name="made_up",
        title="Made-up <numbers>",
        rows=[
            Row("none", "no pre-training", finetune=tuned, expected={"100 %": 21.7}),
            Row("labels", "pseudo labels [alone]", proposals, plain, tuned),
            Row(
                "prompts",
                "saliency prompts",
                proposals,
                pretrain,
                tuned,
                expected={"100 %": {AP: 23.5, AP50: 41}},
            ),
        ],
        metrics={AP: "AP", AP50: "AP50"},
        seeds=(0, 1, 2),
        comparisons=[Comparison("prompts", "none", "pre-training helps")],
        notes="Made up & small.",
        settings=[{"name": "grid_size", "value": 4, "reason": "given; the paper's: 10|20"}],
        samples=2,
    )


def write_images(folder: Path, count: int = 3) -> None:
    """Images of 40 x 60 pixels with two rectangles each, and their annotations."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(1, count + 1):
        name = f"{number}.png"
        Image.fromarray(generator.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(folder / name)
        images.append({"id": number, "file_name": name, "height": 40, "width": 60})
        for category, box in ((1, (2, 3, 20, 20)), (2, (30, 10, 25, 25))):
            identity = {"id": len(annotations) + 1, "image_id": number, "category_id": category}
            annotations.append({**identity, **mask(box), "score": 0.9})
    categories = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog & co"}]
    write_json(
        {"images": images, "annotations": annotations, "categories": categories}, folder / "truth.json"
    )


def mask(box: tuple[int, int, int, int]) -> dict:
    """The segmentation of a rectangle: x, y, width, height."""
    x, y, width, height = box
    pixels = np.zeros((40, 60), np.uint8, order="F")
    pixels[y : y + height, x : x + width] = 1
    rle = coco_mask.encode(pixels)
    return {"segmentation": {"size": [40, 60], "counts": rle["counts"].decode()}}


def value(row: str, training: str, seed: int) -> float:
    """The AP, of 0 to 1, at the end of a training; 0.12 for `none` on 10 %, seed 0."""
    start = {"none": 0.12, "labels": 0.15, "prompts": 0.16}[row]
    return start + {"10 %": 0.0, "100 %": 0.08}[training] + 0.01 * seed


def details(last: float) -> dict:
    """Values by size and class; 0.02 higher for small objects and cats, of which there are three."""
    nothing = {"objects": 0, "AP": None, "AR": None}
    small = {"objects": 6, "AP": last + 0.02, "AR": last + 0.1}
    per_class = {"AP50": 2 * last, "AR": last + 0.1}
    return {
        "sizes": {"small": small, "medium": nothing, "large": nothing},
        "classes": {
            "dog & co": {"objects": 2, "AP": last, **per_class},
            "cat": {"objects": 3, "AP": last + 0.02, **per_class},
        },
    }


def finish(plan: Plan, run: Run, images: Path) -> None:
    """Writes what the run would leave."""
    prints = {"images": 3, "listing_sha256": HASH}
    if run.kind == "proposals":
        truth = json.loads((images / "truth.json").read_text())
        write_json(truth, run.folder / "masks.json")
        size = {"objects": 6, "mean_best_iou": 0.75, "above_half": 0.5}
        none = {"objects": 0, "mean_best_iou": None, "above_half": None}
        by_size = {"all": size, "small": size, "medium": none, "large": none}
        scores = {"images": 3, "images_annotated": 3, "masks_per_image": 2.0, "by_size": by_size}
        result = {"data": prints, "scores": scores}
    else:
        row, training = next(
            (row.name, name)
            for row in plan.experiment.rows
            for name in row.trainings
            if plan.of(row.name, name, run.seed) is run
        )
        losses = [{"step": step, "loss": 30.0 / step} for step in range(1, run.steps + 1)]
        result = {"losses": losses, "evaluations": [], "data": {"training": prints}}
        if training != PRETRAIN:
            last = value(row, training, run.seed)
            result["evaluations"] = [
                {"step": run.steps * part // 4, AP: last * part / 4, AP50: 2 * last * part / 4}
                for part in (1, 2, 3, 4)
            ]
            result["data"]["validation"] = {**prints, "annotations_sha256": HASH}
            result["details"] = details(last)
            predicted = [
                {"image_id": k, "category_id": 1, "score": 0.4, **mask((2, 3, 20, 18))} for k in (1, 2, 3)
            ]
            write_json(predicted, run.folder / "predictions.segm.json")
    seconds = 60.0 if run.kind == "proposals" else 10.0 * run.steps
    memory = 2e9 if run.kind == "proposals" else 1e9 + 1e8 * run.seed
    times = {
        "seconds": seconds,
        "memory": memory,
        "device": "a processor",
        "host": "secret-host",
        "threads": 1,
    }
    write_json(
        {**times, "python": "3.11", "torch": "2.14", "sp_fast": "1.5", "revision": "abc1234"},
        run.folder / "times.json",
    )
    write_json(result, run.folder / "result.json")
