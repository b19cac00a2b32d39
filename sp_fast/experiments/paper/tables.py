"""Tables of the paper as experiments; each takes the fields of `Protocol`, and `quick` for a smoke run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sp_fast.experiments.experiment import Analysis, Experiment, Proposals, Row
from sp_fast.experiments.paper.numbers import BOX_METRICS, METRICS, published
from sp_fast.experiments.paper.protocol import (
    DATA,
    INITIALISATIONS,
    MODELS,
    SP,
    UNLABELLED,
    WITHOUT_PROMPTS,
    Protocol,
    on_protocol,
)

ANALYSES = "sp_fast.experiments.paper.analyses"
IMPORTED = {"model.source": "import"}
COCO_10 = DATA["coco-10"].title


@on_protocol()
def table1(protocol: Protocol) -> Experiment:
    """K-Net from five initialisations, on 5 % and 10 % of COCO."""
    rows = initialisations(protocol, ("coco-5", "coco-10"), "table1")
    title = "Table 1: COCO with 5 % and 10 % of the labels"
    notes = "APm and APl of SwAV at 5 % are as the paper prints them; they look exchanged."
    return protocol.experiment("table1", title, rows, METRICS, notes=notes)


@on_protocol()
def table2(protocol: Protocol) -> Experiment:
    """Mask R-CNN, SOLOv2, and K-Net from five initialisations, on Cityscapes and CTW1500."""
    data = ("cityscapes", "ctw1500")
    rows = [
        compared(dataclasses.replace(protocol, model=model), "imagenet", data, "table2", model=MODELS[model])
        for model in ("mask_rcnn_r50", "solov2_r50")
    ]
    rows += initialisations(protocol, data, "table2", model=MODELS["knet_r50"])
    return protocol.experiment("table2", "Table 2: Cityscapes and CTW1500", rows, METRICS)


@on_protocol(model=False)
def table3(protocol: Protocol) -> Experiment:
    """Mask2Former and QueryInst from five initialisations, on Cityscapes and CTW1500."""
    rows = []
    for model in ("mask2former_r50", "queryinst_r50"):
        own = dataclasses.replace(protocol, model=model)
        rows += initialisations(own, ("cityscapes", "ctw1500"), "table3", model=MODELS[model])
    return protocol.experiment("table3", "Table 3: Mask2Former and QueryInst", rows, METRICS)


@on_protocol()
def table4(protocol: Protocol) -> Experiment:
    """Pre-training with and without kernel supervision."""
    rows = [
        _ablation(protocol, "with", "kernel supervision", published("table4", kernel_loss=True), {}),
        _ablation(
            protocol,
            "without",
            "no kernel supervision",
            published("table4", kernel_loss=False),
            {"model.supervision": None},
        ),
    ]
    return protocol.experiment("table4", "Table 4: kernel supervision", rows, METRICS)


@on_protocol()
def table5(protocol: Protocol) -> Experiment:
    """How prompts are assigned to kernels; without prompts there is no kernel supervision either."""
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "none": ("no prompts", WITHOUT_PROMPTS),
        "random": ("random prompts", {"model.prompts.strategy": "random"}),
        "sequential": ("sequential prompts", {"model.prompts.strategy": "sequential"}),
        "cosine": ("prompts by cosine", {}),
    }
    rows = [
        _ablation(protocol, name, label, published("table5", strategy=name), options)
        for name, (label, options) in kinds.items()
    ]
    return protocol.experiment("table5", "Table 5: how kernels take prompts", rows, METRICS)


@on_protocol()
def table6(protocol: Protocol) -> Experiment:
    """Class-agnostic box AP without any label: K-Net as pre-trained, and results of other methods."""
    annotations = protocol.path(DATA["coco"].val_annotations)
    others = {"freesolo": "FreeSOLO", "up_detr": "UP-DETR", "detreg": "DETReg"}
    name = "COCO val2017, boxes, no labels"

    def row(key: str, method: str, analysis: Analysis, label: str = "", **trained: Any) -> Row:
        expected = {name: published("table6", BOX_METRICS, method=method)}
        return Row(key, label or method, analyses={name: analysis}, expected=expected, **trained)

    rows = []
    for key, method in others.items():
        files = {"predictions": protocol.path(f"results/{key}.json"), "annotations": annotations}
        rows.append(row(key, method, Analysis(f"{ANALYSES}:boxes_of_results", options=files)))
    files = {"images": protocol.path(DATA["coco"].val_images), "annotations": annotations}
    analysis = Analysis(f"{ANALYSES}:boxes_of_model", after="pretrain", options=files)
    trained = {"proposals": protocol.proposals(), "pretrain": protocol.pretrain()}
    rows.append(row(SP, "K-Net with SP", analysis, f"{protocol.model_title} with SP", **trained))
    return protocol.experiment("table6", "Table 6: class-agnostic object detection", rows, BOX_METRICS)


@on_protocol()
def table7(protocol: Protocol) -> Experiment:
    """Kinds of pseudo labels, each without and with prompts.

    UP-DETR's patches and DETReg's regions are not in the paper's table.
    """
    boxes = Proposals(protocol.path(UNLABELLED), kind="random_boxes")
    patches = dataclasses.replace(boxes, options={"kind": "up-detr"})
    kinds: list[tuple[str, str, Proposals | None, str | None]] = [
        ("random", "random proposals", boxes, None),
        ("saliency", "saliency", protocol.proposals(), None),
        ("freesolo", "FreeSOLO", None, "freesolo.json"),
        ("up_detr", "UP-DETR's patches", patches, None),
        ("detreg", "DETReg's regions", None, "detreg_regions.json"),
    ]
    rows = []
    for name, labels, proposals, file in kinds:
        source = {} if name == "saliency" else IMPORTED
        for ending, prompts, options in (("-without", False, WITHOUT_PROMPTS), ("", True, {})):
            in_paper = name not in ("up_detr", "detreg")
            expected = published("table7", labels=labels, prompts=prompts) if in_paper else {}
            rows.append(
                Row(
                    f"{name}{ending}",
                    f"{labels}, {'' if prompts else 'no '}prompts",
                    proposals,
                    protocol.pretrain({**source, **options}, file and protocol.path(file)),
                    {COCO_10: protocol.finetune("coco-10", SP)},
                    expected={COCO_10: expected},
                )
            )
    return protocol.experiment("table7", "Table 7: pseudo labels", rows, METRICS)


def initialisations(
    protocol: Protocol,
    data: Sequence[str],
    table: str,
    *,
    model: str | None = None,
    every_epoch: bool = False,
) -> list[Row]:
    """A row for each of INITIALISATIONS; the paper's values are those of `model` in a table."""
    return [
        compared(protocol, initial, data, table, model=model, every_epoch=every_epoch)
        for initial in INITIALISATIONS
    ]


def compared(
    protocol: Protocol,
    initial: str,
    data: Sequence[str],
    table: str,
    *,
    model: str | None = None,
    every_epoch: bool = False,
) -> Row:
    """The protocol's model from a key of INITIALISATIONS, fine-tuned on keys of DATA.

    `model` is its name in a table of several models; the row's name and label begin with it.
    """
    about: dict[str, Any] = {} if model is None else {"model": model}
    name = initial if model is None else f"{protocol.model.rpartition('_r50')[0] or protocol.model}-{initial}"
    label = (
        INITIALISATIONS[initial] if model is None else f"{protocol.model_title}, {INITIALISATIONS[initial]}"
    )
    expected = {
        DATA[one].title: published(table, pretrain=INITIALISATIONS[initial], data=one, **about)
        for one in data
    }
    trained = initial == SP
    return Row(
        name,
        label,
        protocol.proposals() if trained else None,
        protocol.pretrain() if trained else None,
        {DATA[one].title: protocol.finetune(one, initial, every_epoch=every_epoch) for one in data},
        expected=expected,
    )


def _ablation(
    protocol: Protocol,
    name: str,
    label: str,
    expected: Mapping[str, float | None],
    options: Mapping[str, Any],
) -> Row:
    """Saliency prompts with other `options` of pre-training, fine-tuned on 10 % of COCO."""
    finetune = {COCO_10: protocol.finetune("coco-10", SP)}
    pretrain = protocol.pretrain(options)
    return Row(name, label, protocol.proposals(), pretrain, finetune, expected={COCO_10: expected})
