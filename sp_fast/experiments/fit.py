"""`sp-fast fit`: one row, pre-trained on a user's images and fine-tuned on a few labels; a second without."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sp_fast.data.coco import load_coco
from sp_fast.experiments.experiment import Comparison, Experiment, Proposals, Row, Training
from sp_fast.experiments.fit_data import FitData
from sp_fast.experiments.paper.protocol import WITHOUT_PROMPTS
from sp_fast.experiments.plan import Plan
from sp_fast.experiments.settings import Choice, shown
from sp_fast.experiments.use import MODEL
from sp_fast.files import replacing
from sp_fast.weights.unpickle import load_foreign

PRETRAINED, WITHOUT = "pretrained", "without"
METRIC = "coco/segm_mAP"
AGNOSTIC = "class_agnostic/segm_mAP"


def experiment(
    data: dict[str, Any],
    weights: str,
    backbone: str,
    settings: Sequence[Sequence[Any]],
    compare: bool = False,
    class_agnostic: bool = False,
    command: str = "",
) -> Experiment:
    """The experiment.

    Args:
        data: fields of the `FitData`.
        weights: checkpoint of the backbone.
        backbone: its name.
        settings: the choices, each a name, a value and a reason.
        compare: add a row without pre-training.
        class_agnostic: train and measure with all classes as one.
        command: the command that makes it.
    """
    choices = [Choice(*one) for one in settings]
    found, chosen = FitData(**data), {one.name: one.value for one in choices}
    kind = chosen["proposals"]
    proposals = Proposals(
        found.images,
        backbone={"name": backbone, "weights": weights, **kind["backbone"]},
        size=kind["size"],
        options=kind["options"],
        truth=found.truth,
    )
    name = f"{found.labels_count} labelled image{'s' if found.labels_count > 1 else ''}"
    finetune = {name: finetuning(found, weights, chosen, class_agnostic)}
    rows = [
        Row(
            PRETRAINED,
            "with pre-training",
            proposals,
            pretraining(found, weights, chosen, kind.get("channels")),
            finetune,
        )
    ]
    comparisons = []
    if compare:
        rows.append(Row(WITHOUT, "no pre-training", finetune=finetune))
        comparisons.append(Comparison(PRETRAINED, WITHOUT, "gain from pre-training on your images"))
    return Experiment(
        name="fit",
        title=f"{chosen['model']} on your images",
        rows=rows,
        metrics=_metrics(found, class_agnostic),
        comparisons=comparisons,
        settings=[one._replace(value=shown(one))._asdict() for one in choices],
        command=command,
    )


def _metrics(data: FitData, class_agnostic: bool) -> dict[str, str]:
    classes = len(load_coco(data.val)["categories"])
    if class_agnostic:
        return {AGNOSTIC: "AP", f"{AGNOSTIC}_50": "AP50"}
    metrics = {METRIC: "AP", f"{METRIC}_50": "AP50"}
    return metrics if classes == 1 else {**metrics, AGNOSTIC: "AP, classes as one"}


def pretraining(
    data: FitData, weights: str, chosen: dict[str, Any], seed_channels: int | None = None
) -> Training:
    """The pre-training with the chosen settings by name; `seed_channels` None keeps the config's."""
    options = _model_options("model.detector.", chosen)
    if chosen["prompts"] == "none":
        options |= WITHOUT_PROMPTS
    else:
        options["model.prompts.strategy"] = chosen["prompts"]
        if seed_channels is not None:
            options["model.supervision.seed_channels"] = seed_channels
    return Training(
        f"fit/{chosen['model']}_pretrain",
        images=data.images,
        steps=chosen["pretrain_steps"],
        options={**_common_options(chosen), **options},
        arguments=_arguments(weights, chosen, "pretrain_cache"),
    )


def finetuning(data: FitData, weights: str, chosen: dict[str, Any], class_agnostic: bool) -> Training:
    """The fine-tuning with the chosen settings by name."""
    return Training(
        f"fit/{chosen['model']}_finetune",
        images=data.label_images,
        annotations=data.labels,
        val_images=data.val_images,
        val_annotations=data.val,
        steps=chosen["finetune_steps"],
        options={
            **_common_options(chosen),
            **_model_options("model.", chosen),
            # `sp_fast.load` reads the test pipeline.
            **{f"{name}_dataloader.dataset.pipeline.1.scale": chosen["size"] for name in ("val", "test")},
        },
        arguments=[
            *_arguments(weights, chosen, "finetune_cache"),
            *(["--class-agnostic"] if class_agnostic else []),
        ],
    )


def _common_options(chosen: dict[str, Any]) -> dict[str, Any]:
    return {
        "train_dataloader.dataset.pipeline.2.scale": chosen["size"],
        "train_dataloader.batch_size": chosen["batch_size"],
    }


def _model_options(prefix: str, chosen: dict[str, Any]) -> dict[str, Any]:
    kernels = chosen["kernels"]
    return {
        f"{prefix}rpn_head.num_proposals": kernels,
        f"{prefix}test_cfg.max_per_img": max(kernels, 100),
        # After so short a training, class scores rank badly and many kernels find the same object.
        f"+{prefix}test_cfg.rerank": True,
    }


def _arguments(weights: str, chosen: dict[str, Any], cache: str) -> list[str]:
    cached = ["--cache", chosen[cache]] if chosen[cache] else []
    precision = ["--amp"] if chosen["amp"] else ["--no-amp"] if torch.cuda.is_available() else []
    return ["--weights", weights, *cached, *precision]


def write_model(plan: Plan) -> Path:
    """Writes `model.pth`: weights, config and class names of the pre-trained row's first finished seed.

    They are those of the last step, which the table's numbers are measured with.
    """
    training = next(iter(plan.experiment.rows[0].finetune))
    runs = [plan.of(PRETRAINED, training, seed) for seed in plan.seeds]
    run = next(run for run in runs if run is not None and run.finished)
    last = load_foreign(run.folder / "latest.pth")
    target = plan.out / MODEL
    with replacing(target) as file:
        torch.save({"state_dict": last["state_dict"], "meta": last["meta"]}, file)
    return target
