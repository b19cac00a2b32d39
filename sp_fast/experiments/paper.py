"""Ablations of the paper (Li et al., CVPR 2023): Tables 4, 5 and 7, K-Net on ResNet-50, COCO 10 %, 48 epochs.

A data root holds `unlabeled2017/`, `train2017/`, `val2017/`, `annotations/instances_train2017.10.json` and
`instances_val2017.json`, and `weights/densecl_r50.pth`; for Table 7 also `freesolo.json`, FreeSOLO's masks of
`unlabeled2017` in COCO format.
"""

from __future__ import annotations

from typing import Any

from sp_fast.experiments.experiment import Experiment, Proposals, Row, Training

WITHOUT_PROMPTS = {"model.prompts.strategy": "none", "model.supervision": None}
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
    """Three kinds of pseudo labels, each without and with prompts."""
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
    unlabelled = f"{data_root}/unlabeled2017"
    weights = f"{data_root}/weights/densecl_r50.pth"
    saliency = Proposals(unlabelled, backbone={"name": "resnet50", "weights": weights})
    annotations, arguments = labels.get("annotations"), ["--weights", weights]
    pretrain = Training("knet_r50/pretrain", unlabelled, annotations, options=options, arguments=arguments)
    train, val = (f"{data_root}/annotations/instances_{name}.json" for name in ("train2017.10", "val2017"))
    finetune = Training("knet_r50/finetune", f"{data_root}/train2017", train, f"{data_root}/val2017", val)
    proposals = labels.get("proposals", saliency)
    return Row(name, label, proposals, pretrain, {LABELS: finetune}, {LABELS: expected})
