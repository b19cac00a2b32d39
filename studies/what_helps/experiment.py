"""Does pre-training help, and which of its parts? Rows that differ in one thing, paired over seeds.

On cell nuclei, the demo's scenes or mini-COCO:

    sp-fast experiment run studies/what_helps/experiment.py --data-root DATA --out runs/helps_nuclei

and with `--set data=demo`, which needs no DATA, or `--set data=mini_coco`.

docs/what-helps.md says what DATA holds, what the rows are and how long this takes.
"""

from __future__ import annotations

import dataclasses
import functools
import random
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from sp_fast.data.coco import load_coco, save_coco
from sp_fast.experiments import Analysis, Comparison, Experiment, Proposals, Row, demo, fit, folds
from sp_fast.experiments.experiment import PRETRAIN
from sp_fast.experiments.fit_data import FitData, gather
from sp_fast.experiments.paper.protocol import WITHOUT_PROMPTS

FEW = 10  # labelled images of the smaller set, drawn for each seed
DRAWS = 20  # seeds for which they are drawn
# Data -> most pseudo labels per image: half of the kernels or less; the others learn what is background.
MASKS = {"nuclei": 40, "demo": 10, "mini_coco": 20}
# Nuclei are smaller than the cells of MobileNetV2: masks of the preset `multiscale` come from random filters.
FINE = {"name": "random", "padding": "replicate"}
FINE_CHANNELS = 64
# Longer side of the images in pixels for the random backbone, whose cells are 4 x 4 pixels.
SIZES = {"nuclei": (480,), "demo": (128, 256)}
MINI_COCO = runpy.run_path(str(Path(__file__).parents[1] / "mini_coco/experiment.py"))["experiment"]
# As `sp-fast fit` chooses for these images, but for size, batch and steps, which save time.
NUCLEI = {
    "model": "knet_mobilenet_v2_64",
    "size": 256,
    "kernels": 100,
    "batch_size": 4,
    "pretrain_steps": 480,
    "finetune_steps": 600,
    "amp": False,
    "pretrain_cache": "features",
    "finetune_cache": "features",
    "prompts": "cosine",
}
QUICK = {"size": 64, "kernels": 20, "batch_size": 2, "pretrain_steps": 2, "finetune_steps": 3}


class Arm(NamedTuple):
    """One way of pre-training."""

    label: str  # in tables
    labels: str  # row of the pseudo labels: `paper`, `multiscale` or `refined`
    options: Mapping[str, Any]  # how it differs from pre-training with prompts and the kernel loss of Eq. 9
    fold: str | None = None  # how prompts are folded, if not as in the options


# How prompts are folded changes only what pre-training exports, so these rows share it.
FOLDED = {"model.prompts.fold": "kernel"}
CENTERED = {**FOLDED, "model.supervision.center": True}
STD = "model.detector.rpn_head.init_std"
ARMS = {
    "paper": Arm("labels of one scale", "paper", WITHOUT_PROMPTS),
    "multiscale": Arm("labels of several scales", "multiscale", WITHOUT_PROMPTS),
    "refined": Arm("refined labels of several scales", "refined", WITHOUT_PROMPTS),
    "prompts": Arm("and prompts", "multiscale", FOLDED, "none"),
    "folded": Arm("and prompts, folded", "multiscale", FOLDED, "mean"),
    "folded-kernel": Arm("and prompts, folded by kernel", "multiscale", FOLDED),
    "centered": Arm("and prompts, folded, centered loss", "multiscale", CENTERED, "mean"),
    "std2": Arm("labels of several scales, K^0 of std 2", "multiscale", {**WITHOUT_PROMPTS, STD: 2.0}),
    "std3": Arm("labels of several scales, K^0 of std 3", "multiscale", {**WITHOUT_PROMPTS, STD: 3.0}),
}
COMPARISONS = [
    *(
        Comparison(name, "none", "gain of pre-training")
        for name in ("paper", "multiscale", "refined", "prompts", "folded", "centered")
    ),
    Comparison("multiscale", "paper", "gain of labels of several scales"),
    Comparison("refined", "multiscale", "gain of refined labels"),
    Comparison("prompts", "multiscale", "gain of prompts"),
    Comparison("folded", "prompts", "gain of folding"),
    Comparison("folded", "multiscale", "gain of folded prompts"),
    Comparison("folded-kernel", "folded", "gain of a mean for each kernel"),
    Comparison("centered", "folded", "gain of centering the kernel loss"),
    Comparison("std2", "multiscale", "gain of K^0 of twice the spread"),
    Comparison("std3", "multiscale", "gain of K^0 of three times the spread"),
]
ORDER = "All rows of a seed see the images in the same order"
NOTES = {
    "nuclei": f"{ORDER} and, with {FEW} labels, the same {FEW} images. The spread is over seeds; that of "
    "other images to validate on is not in it.",
    "demo": f"{ORDER}. Each seed has scenes of its own.",
    "mini_coco": f"{ORDER}.",
}


def experiment(
    data_root: str | None = None, *, data: str = "nuclei", preset: str = "multiscale", quick: bool = False
) -> Experiment:
    """The experiment.

    Args:
        data_root: folder of the data and the weights; the demo needs none.
        data: a key of MASKS.
        preset: preset of the labels in the row `multiscale` and in those after it.
        quick: a smoke run of a few steps.

    Raises:
        ValueError: unknown data, or data without their folder.
    """
    if data not in MASKS:
        raise ValueError(f"data: expected one of {', '.join(MASKS)}, got {data!r}")
    if data == "demo":
        base, row, seeds = demo.experiment(quick=quick), "prompts", 8
    elif data_root is None:
        raise ValueError(f"--data-root: expected the folder that holds {data} and the weights, got none")
    elif data == "nuclei":
        base, row, seeds = _nuclei(Path(data_root), quick), "prompts", 3
    else:
        base, row, seeds = MINI_COCO(data_root, quick=quick), "cosine", 3
    return dataclasses.replace(
        base,
        name=f"helps_{data}",
        title=f"What helps: {base.title}",
        rows=_rows(next(one for one in base.rows if one.name == row), preset, data),
        seeds=range(seeds),
        comparisons=COMPARISONS,
        notes=f"{NOTES[data]} {base.notes}" if data == "mini_coco" else NOTES[data],
    )


def _nuclei(root: Path, quick: bool) -> Experiment:
    """Pre-training with prompts on all images but those of val, then fine-tuning on all labels or on FEW."""
    chosen = {**NUCLEI, **(QUICK if quick else {})}
    weights = str(root / "weights/mobilenet_v2_imagenet.pth")
    found = FitData(
        images="{data}/images",
        labels="{data}/train.json",
        label_images=str(root / "nuclei/train"),
        val="{data}/val.json",
        val_images=str(root / "nuclei/val"),
        truth="{data}/truth.json",
        images_count=280,
        labels_count=40,
        val_count=80,
        held_out=False,
    )
    few = dataclasses.replace(found, labels="{data}/few_{seed}.json", labels_count=FEW)
    backbone = {"name": "mobilenet_v2", "weights": weights}
    proposals = Proposals(
        found.images, backbone=backbone, options={"max_masks": MASKS["nuclei"]}, truth=found.truth
    )
    finetune = {
        f"{one.labels_count} labelled images": fit.finetuning(one, weights, chosen, class_agnostic=False)
        for one in (found, few)
    }
    return Experiment(
        name="nuclei",
        title="cell nuclei",
        rows=[Row("prompts", "prompts", proposals, fit.pretraining(found, weights, chosen), finetune)],
        metrics={fit.METRIC: "AP", f"{fit.METRIC}_50": "AP50"},
        prepare=functools.partial(prepare, root=root / "nuclei"),
    )


def _rows(like: Row, preset: str, data: str) -> list[Row]:
    """All rows, from one with labels of one scale and prompts."""
    one_scale, with_prompts = like.proposals, like.pretrain
    assert one_scale is not None
    assert with_prompts is not None
    options = {"preset": preset, "max_masks": MASKS[data], "refine": "none"}
    several = dataclasses.replace(one_scale, options=options)
    seeds: dict[str, Any] = {}  # how the kernel loss differs
    if preset == "multiscale" and data in SIZES:
        several = dataclasses.replace(several, options={**several.options, "sizes": SIZES[data]})
        if data == "nuclei":
            several = dataclasses.replace(several, backbone=FINE)
            seeds = {"model.supervision.seed_channels": FINE_CHANNELS}
    refined = dataclasses.replace(several, options={**several.options, "refine": "segments"})
    proposals = {"paper": one_scale, "multiscale": several, "refined": refined}
    # Pre-training is not validated: rows that share it differ in what they export.
    arguments = [*with_prompts.arguments, "--no-val"]
    unvalidated = dataclasses.replace(
        with_prompts, val_images=None, val_annotations=None, arguments=arguments
    )

    def row(name: str, arm: Arm) -> Row:
        seeded = seeds if "model.prompts.fold" in arm.options else {}
        options = {**unvalidated.options, **arm.options, **seeded}
        pretrain = dataclasses.replace(unvalidated, options=options)
        parts: dict[str, Any] = {"proposals": proposals[arm.labels], "pretrain": pretrain}
        if arm.fold is not None:
            fold = Analysis(f"{folds.__name__}:with_fold", PRETRAIN, {"fold": arm.fold})
            parts |= {"analyses": {"fold": fold}, "start": "fold"}
        return Row(name, arm.label, finetune=like.finetune, **parts)

    without = Row("none", "no pre-training", finetune=like.finetune)
    return [without, *(row(name, arm) for name, arm in ARMS.items())]


def prepare(folder: Path, seed: int, *, root: Path) -> None:
    """Fills `folder` as `sp-fast fit` does, and draws FEW labelled images for each seed below DRAWS."""
    labels, val = (root / f"instances_{split}.json" for split in ("train", "val"))
    gather(folder, [root / "unlabeled"], labels, root / "train", val, root / "val")
    train = load_coco(folder / "train.json")
    for draw in range(DRAWS):
        images = random.Random(draw).sample(train["images"], min(FEW, len(train["images"])))
        ids = {image["id"] for image in images}
        objects = [one for one in train["annotations"] if one["image_id"] in ids]
        save_coco({**train, "images": images, "annotations": objects}, folder / f"few_{draw}.json")
