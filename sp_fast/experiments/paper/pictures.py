"""Figures 5 and 6 of the paper as experiments."""

from __future__ import annotations

import dataclasses

from sp_fast.experiments.experiment import Analysis, Experiment, Row, Training
from sp_fast.experiments.figures import Figure, kernels, masks
from sp_fast.experiments.paper.protocol import SP, Protocol

AP = {"coco/segm_mAP": "AP"}
SHORT = 2  # epochs after which the paper looks at the kernels
QUICK_STEPS = 4


def figure5(
    data_root: str,
    model: str = "knet_r50",
    initial: str = "densecl",
    quick: bool = False,
    pretrain_epochs: int | None = None,
    finetune_epochs: int | None = None,
) -> Experiment:
    """Figure 5: proposals, and predictions after fine-tuning on COCO 10 %.

    Args:
        data_root: folder of the data, see `Protocol`.
        model: see `Protocol`.
        initial: see `Protocol`.
        quick: a smoke run of a few steps.
        pretrain_epochs: length of pre-training; None for the config's.
        finetune_epochs: length of fine-tuning, likewise.
    """
    protocol = Protocol(data_root, model, initial)
    pretrain = _lasting(protocol.pretrain(), pretrain_epochs, quick)
    finetune = _lasting(protocol.finetune("coco-10", SP), finetune_epochs, quick)
    figures = [
        Figure(
            "figure5a",
            "(a) Saliency masks of unlabelled images; colours only tell them apart.",
            masks.proposals,
        ),
        Figure(
            "figure5b",
            "(b) Annotated objects of validation images and, below, what the model finds after fine-tuning "
            "on COCO 10 %, with scores of at least 0.3.",
            masks.predictions,
        ),
    ]
    row = Row(SP, "SP", protocol.proposals(), pretrain, {"COCO 10 %": finetune})
    title = "Figure 5: proposals, and results after fine-tuning"
    return Experiment("figure5", title, [row], AP, figures=figures)


def figure6(
    data_root: str,
    model: str = "knet_r50",
    initial: str = "densecl",
    quick: bool = False,
    pretrain_epochs: int | None = None,
    finetune_epochs: int = SHORT,
    limit: int | None = None,
) -> Experiment:
    """Figure 6: where kernels look after two epochs on COCO, and in a model that others trained fully.

    Args:
        data_root: folder of the data, see `Protocol`; the fully trained model, with its config in it as
            `sp-fast train` and mmdet write it, is `weights/<model>_coco.pth`.
        model: see `Protocol`.
        initial: see `Protocol`.
        quick: a smoke run of a few steps and images.
        pretrain_epochs: length of pre-training; None for the config's.
        finetune_epochs: number of epochs on COCO, to which the schedule is scaled.
        limit: number of validation images; None for all.
    """
    protocol = Protocol(data_root, model, initial)
    options = {"images": protocol.path("val2017"), "limit": 8 if quick else limit}
    maps = Analysis(f"{kernels.__name__}:kernel_maps", "COCO", options)
    trained = protocol.path(f"weights/{model}_coco.pth")
    pretrain = _lasting(protocol.pretrain(), pretrain_epochs, quick)

    def row(name: str, label: str, finetune: Training, **parts) -> Row:
        tuned = {"COCO": _lasting(finetune, finetune_epochs, quick)}
        return Row(name, label, finetune=tuned, analyses={kernels.ANALYSIS: maps}, **parts)

    from_moco = protocol.finetune("coco", "moco_v2")
    rows = [
        row("scratch", "from scratch", dataclasses.replace(from_moco, arguments=["--from-scratch"])),
        row("moco_v2", "MoCo-v2", from_moco),
        row(SP, "SP", protocol.finetune("coco", SP), proposals=protocol.proposals(), pretrain=pretrain),
        Row(
            "full",
            "fully trained",
            analyses={
                kernels.ANALYSIS: dataclasses.replace(
                    maps, after=None, options={**options, "checkpoint": trained}
                )
            },
        ),
    ]
    caption = (
        "Mean mask of each kernel after the last stage over the validation images, resized to 200 x 200, in "
        f"the kernels' order and one colour scale; after {finetune_epochs} epochs of COCO (from scratch: the "
        "backbone is random too), and of a fully trained model."
    )
    figures = [Figure("figure6", caption, kernels.draw)]
    return Experiment("figure6", "Figure 6: where kernels look", rows, AP, figures=figures)


def _lasting(training: Training, epochs: int | None, quick: bool) -> Training:
    """The training with another length: epochs, unless they are None, or a few steps."""
    if quick:
        return dataclasses.replace(training, steps=QUICK_STEPS)
    return dataclasses.replace(training, epochs=epochs)
