"""Figures 5 and 6 of the paper as experiments; they take the fields of `Protocol`, and `quick`."""

from __future__ import annotations

import dataclasses
from typing import Any

from sp_fast.experiments.experiment import Analysis, Experiment, Row, Training
from sp_fast.experiments.figures import Figure, kernels, masks
from sp_fast.experiments.paper.curves import AP
from sp_fast.experiments.paper.protocol import DATA, SP, Protocol, on_protocol

COCO, COCO_10 = DATA["coco"].title, DATA["coco-10"].title
SHORT = 2  # epochs after which the paper looks at kernels
FULLY_TRAINED = "weights/knet_r50_coco.pth"


@on_protocol()
def figure5(protocol: Protocol) -> Experiment:
    """Proposals, and predictions after fine-tuning on COCO 10 %."""
    tuned = {COCO_10: protocol.finetune("coco-10", SP)}
    row = Row(SP, "SP", protocol.proposals(), protocol.pretrain(), tuned)
    found = (
        "(b) Annotated objects of validation images and, below, what the model finds after fine-tuning on "
        f"{COCO_10}, with scores of at least 0.3."
    )
    figures = [
        Figure(
            "figure5a",
            "(a) Saliency masks of unlabelled images; colours only tell them apart.",
            masks.proposals,
        ),
        Figure("figure5b", found, masks.predictions),
    ]
    title = "Figure 5: proposals, and results after fine-tuning"
    return protocol.experiment("figure5", title, [row], AP, figures=figures)


@on_protocol()
def figure6(protocol: Protocol) -> Experiment:
    """Where kernels look after two epochs on COCO, and in a fully trained model given by the user."""
    given = protocol.finetune_epochs or protocol.finetune_steps
    short = protocol if given else dataclasses.replace(protocol, finetune_epochs=SHORT)
    images = {"images": protocol.path("val2017")}
    maps = Analysis(f"{kernels.__name__}:kernel_maps", COCO, images)
    of_others = {**images, "checkpoint": protocol.path(FULLY_TRAINED)}

    def row(name: str, label: str, finetune: Training, **parts: Any) -> Row:
        return Row(name, label, finetune={COCO: finetune}, analyses={kernels.ANALYSIS: maps}, **parts)

    from_moco = short.finetune("coco", "moco_v2")
    batch = from_moco.arguments[2:]  # without --weights FILE
    pretrained = {"proposals": protocol.proposals(), "pretrain": protocol.pretrain()}
    rows = [
        row("scratch", "from scratch", dataclasses.replace(from_moco, arguments=["--from-scratch", *batch])),
        row("moco_v2", "MoCo-v2", from_moco),
        row(SP, "SP", short.finetune("coco", SP), **pretrained),
        Row(
            "full",
            "fully trained",
            analyses={kernels.ANALYSIS: dataclasses.replace(maps, after=None, options=of_others)},
        ),
    ]
    length = f"{short.finetune_steps} steps" if short.finetune_steps else f"{short.finetune_epochs} epochs"
    caption = (
        "Mean mask of each kernel after the last stage over the validation images, resized to 200 x 200, in "
        f"the kernels' order and one colour scale; after {length} of {COCO}, to which the schedule is scaled "
        "(from scratch: the backbone is random too), and of a fully trained model."
    )
    figures = [Figure("figure6", caption, kernels.draw)]
    return protocol.experiment("figure6", "Figure 6: where kernels look", rows, AP, figures=figures)
