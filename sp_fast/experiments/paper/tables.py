"""Tables of the paper as experiments."""

from __future__ import annotations

from typing import Any

from sp_fast.experiments.experiment import Experiment, Proposals, Row
from sp_fast.experiments.paper.protocol import SP, WITHOUT_PROMPTS, Protocol

IMPORTED = {"model.source": "import"}
METRICS = {"coco/segm_mAP": "AP"} | {f"coco/segm_mAP_{x}": f"AP{x}" for x in ("50", "75", "s", "m", "l")}
LABELS = "COCO 10 %"


def table4(data_root: str) -> Experiment:
    """Kernel supervision: with and without."""
    rows = [
        _row(data_root, "with", "kernel supervision", 23.5, {}),
        _row(data_root, "without", "no kernel supervision", 23.1, {"model.supervision": None}),
    ]
    return Experiment("table4", "Table 4: kernel supervision", rows, METRICS)


def table5(data_root: str) -> Experiment:
    """How prompts are assigned to kernels; without prompts there is no kernel supervision either."""
    rows = [
        _row(data_root, "none", "no prompts", 21.7, WITHOUT_PROMPTS),
        _row(data_root, "random", "random prompts", 21.3, {"model.prompts.strategy": "random"}),
        _row(data_root, "sequential", "sequential prompts", 23.0, {"model.prompts.strategy": "sequential"}),
        _row(data_root, "cosine", "prompts by cosine", 23.5, {}),
    ]
    return Experiment("table5", "Table 5: how kernels take prompts", rows, METRICS)


def table7(data_root: str) -> Experiment:
    """Three kinds of pseudo labels, each without and with prompts.

    FreeSOLO's masks of the unlabelled images are in `freesolo.json`, in COCO format.
    """
    boxes = Proposals(f"{data_root}/unlabeled2017", kind="random_boxes")
    masks = f"{data_root}/freesolo.json"
    kinds: list[tuple[str, str, dict[str, Any], dict[str, Any], float, float]] = [
        ("random", "random proposals", IMPORTED, {"proposals": boxes}, 0.8, 10.0),
        ("saliency", "saliency masks", {}, {}, 21.7, 23.5),
        ("freesolo", "FreeSOLO's masks", IMPORTED, {"proposals": None, "annotations": masks}, 23.3, 24.0),
    ]
    rows = []
    for name, label, options, labels, without, with_prompts in kinds:
        bare = {**options, **WITHOUT_PROMPTS}
        rows.append(_row(data_root, f"{name}-without", f"{label}, no prompts", without, bare, **labels))
        rows.append(_row(data_root, name, f"{label}, prompts", with_prompts, options, **labels))
    return Experiment("table7", "Table 7: pseudo labels", rows, METRICS)


def _row(
    data_root: str, name: str, label: str, expected: float, options: dict[str, Any], **labels: Any
) -> Row:
    """A row of the paper's setting with `options`; `labels` replace its saliency masks."""
    protocol = Protocol(data_root)
    return Row(
        name,
        label,
        labels.get("proposals", protocol.proposals()),
        protocol.pretrain(options, labels.get("annotations")),
        {LABELS: protocol.finetune("coco-10", SP)},
        expected={LABELS: expected},
    )
