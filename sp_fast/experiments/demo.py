"""The demo: does pre-training on unlabelled scenes help, when there are 20 labelled ones?"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from sp_fast.data.synthetic import SetOptions, make_set
from sp_fast.experiments.experiment import Comparison, Experiment, Proposals, Row, Training
from sp_fast.experiments.paper.protocol import WITHOUT_PROMPTS
from sp_fast.progress import RunProgress

METRIC = "class_agnostic/segm_mAP"
NOTES = (
    "Another seed changes each number by a point or more. Prompts end 1.5 ± 0.9 AP below pseudo labels alone "
    "here, over eight seeds with masks of several scales; on cell nuclei they gain: see docs/what-helps.md."
)


def make_scenes(folder: Path, seed: int, options: SetOptions) -> None:
    """Makes the synthetic data set of a seed."""
    with RunProgress("scenes") as progress:
        make_set(folder / "set", dataclasses.replace(options, seed=seed), progress)


def experiment(*, quick: bool = False) -> Experiment:
    """The demo's experiment; `quick` makes it a smoke run of a few steps on a few scenes."""
    scenes = SetOptions(size=64, unlabelled=16, labelled=8, validation=8) if quick else SetOptions()
    pretrain_steps, finetune_steps = (3, 4) if quick else (800, 300)
    proposals = Proposals(
        images="{data}/set/unlabelled",
        backbone={"name": "random"},
        size=None,
        options={"center": True, "similarity": "cosine", "threshold": 0.7, "grid": (16, 16)},
        truth="{data}/set/unlabelled.truth.json",
    )
    with_prompts = Training("demo/pretrain", images="{data}/set/unlabelled", steps=pretrain_steps)
    without = dataclasses.replace(with_prompts, options=WITHOUT_PROMPTS)
    training = Training(
        "demo/finetune",
        images="{data}/set/labelled",
        annotations="{data}/set/labelled.json",
        val_images="{data}/set/validation",
        val_annotations="{data}/set/validation.json",
        steps=finetune_steps,
        options={"train_cfg.val_interval": 2 if quick else 75},
        arguments=["--class-agnostic"],
    )
    finetune = {f"{scenes.labelled} scenes": training}
    return Experiment(
        name="demo",
        title="Saliency-prompt pre-training on a synthetic low-data set",
        rows=[
            Row("scratch", "no pre-training", finetune=finetune),
            Row("pseudo_labels", "pseudo labels, no prompts", proposals, without, finetune),
            Row("prompts", "saliency prompts", proposals, with_prompts, finetune),
        ],
        metrics={METRIC: "AP", f"{METRIC}_50": "AP50"},
        comparisons=[
            Comparison("prompts", "scratch", "pre-training helps"),
            Comparison("prompts", "pseudo_labels", "prompts help"),
        ],
        prepare=functools.partial(make_scenes, options=scenes),
        data_per_seed=True,
        notes=NOTES,
    )
