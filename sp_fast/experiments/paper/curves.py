"""Figures 1, 3 and 4 of the paper as experiments."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from sp_fast.experiments.experiment import Experiment, Row
from sp_fast.experiments.figures import Figure, bars, epochs
from sp_fast.experiments.paper.numbers import METRICS, published
from sp_fast.experiments.paper.protocol import DATA, INITIALISATIONS, MODELS, SP, Protocol, on_protocol
from sp_fast.experiments.paper.tables import initialisations

AP = dict(list(METRICS.items())[:1])
# Where the paper's tables have the values of Figure 1's bars.
_TABLES = {"coco-10": "table1", "cityscapes": "table2", "ctw1500": "table2"}
_BARS = "AP after fine-tuning; the paper's values where its tables have them."


@on_protocol()
def figure1(protocol: Protocol) -> Experiment:
    """K-Net and Mask R-CNN on large and on small data sets, and K-Net with saliency prompts."""
    rows = _three_models(protocol, ("coco", "coco-10", "cityscapes", "ctw1500"))
    figures = [Figure("figure1", _BARS, bars.draw)]
    return protocol.experiment("figure1", "Figure 1: large and small data sets", rows, AP, figures=figures)


@on_protocol()
def figure3(protocol: Protocol) -> Experiment:
    """AP by epoch of fine-tuning on 10 % of COCO, from five initialisations."""
    rows = initialisations(protocol, ("coco-10",), "table1", every_epoch=True)
    return _by_epoch(protocol, 3, "COCO 10 %", rows)


@on_protocol()
def figure4(protocol: Protocol) -> Experiment:
    """AP by epoch on Cityscapes and on CTW1500: Mask R-CNN, K-Net, K-Net with saliency prompts."""
    rows = _three_models(protocol, ("cityscapes", "ctw1500"), every_epoch=True)
    return _by_epoch(protocol, 4, "Cityscapes and CTW1500", rows)


def _by_epoch(protocol: Protocol, number: int, data: str, rows: Sequence[Row]) -> Experiment:
    name = f"figure{number}"
    caption = f"AP on the validation images by epoch of fine-tuning on {data}."
    title = f"Figure {number}: AP by epoch on {data}"
    return protocol.experiment(name, title, rows, AP, figures=[Figure(name, caption, epochs.draw)])


def _three_models(protocol: Protocol, data: Sequence[str], *, every_epoch: bool = False) -> list[Row]:
    knet = MODELS["knet_r50"]
    mask_rcnn = dataclasses.replace(protocol, model="mask_rcnn_r50")
    kinds = {
        "mask_rcnn": (MODELS["mask_rcnn_r50"], mask_rcnn, "imagenet"),
        "knet": (knet, protocol, "imagenet"),
        SP: (knet, protocol, SP),
    }
    return [
        Row(
            name,
            f"{own.model_title} with SP" if initial == SP else own.model_title,
            own.proposals() if initial == SP else None,
            own.pretrain() if initial == SP else None,
            {DATA[one].title: own.finetune(one, initial, every_epoch=every_epoch) for one in data},
            expected={DATA[one].title: _known(one, model, initial) for one in data},
        )
        for name, (model, own, initial) in kinds.items()
    ]


def _known(data: str, model: str, initial: str) -> Mapping[str, float | None]:
    """The value in one of the paper's tables, if one has it."""
    table = _TABLES.get(data)
    about = {"pretrain": INITIALISATIONS[initial], "data": data}
    if table is None or (table == "table1" and model != MODELS["knet_r50"]):
        return {}
    return published(table, AP, **about, **({"model": model} if table == "table2" else {}))
