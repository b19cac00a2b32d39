"""mini-COCO: what each part of the method gives on 919 unlabelled and 289 labelled images.

    sp-fast experiment run studies/mini_coco/experiment.py --data-root DATA --out runs/mini_coco --seeds 0,1,2

README.md says what DATA holds and what the rows are.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from sp_fast.data.coco import load_coco, save_coco
from sp_fast.data.images import list_images
from sp_fast.experiments import Comparison, Experiment, Proposals, Row, Training

CONFIGS = Path(__file__).resolve().parent / "configs"
# Pre-training sees these without their labels.
UNLABELLED = {"train": "coco_mini/train", "unlabeled": "coco_mini/unlabeled", "bsds500": "bsds500"}
TRAIN, VAL = "coco_mini/train", "coco_mini/val"
ANNOTATIONS = "coco_mini/annotations/instances_{}.json"
IMAGES = "{data}/unlabelled"
LABELS = {"10 %": "{data}/labels_10.json", "100 %": "{data}/labels_100.json"}
BOXES = 20


class Scale(NamedTuple):
    """How large a study is."""

    size: int  # longer side of the training images in pixels, a multiple of 32
    images: int  # images that pre-training sees, with repetitions
    finetune_steps: int
    proposal_size: int = 640  # longer side in pixels of the images that the proposals are made from
    limit: int | None = None  # images of each split, or None for all


class Backbone(NamedTuple):
    """A backbone with weights from ImageNet; its configs are `configs/<name>_*.py`."""

    title: str  # title of the model
    scale: Scale
    batch_size: int  # images per step of pre-training, as its config says
    features: dict[str, Any]  # arguments of `build_backbone` for the proposals; `weights` within the data
    finetune_cache: str = "ram"  # `features` where fine-tuning freezes the backbone too


MOBILENET = {"name": "mobilenet_v2", "stage": 4, "weights": "weights/mobilenet_v2_imagenet.pth"}
CAFFE = {"name": "resnet50", "style": "caffe", "stage": 3, "weights": "weights/resnet50_caffe_to_layer3.pth"}
LARGE = Scale(size=384, images=50_000, finetune_steps=600)
QUICK = Scale(size=128, images=1920, finetune_steps=60, proposal_size=320, limit=80)
QUICK_ROWS = ("none", "labels", "cosine")
BACKBONES = {
    "mobilenet_v2_64": Backbone(
        "K-Net of 64 channels, MobileNetV2 (ImageNet, frozen)",
        Scale(size=160, images=9600, finetune_steps=240),
        16,
        MOBILENET,
        finetune_cache="features",
    ),
    "mobilenet_v2": Backbone("K-Net, MobileNetV2 (ImageNet)", LARGE, 32, MOBILENET),
    "resnet50": Backbone("K-Net, ResNet-50 up to layer3 (ImageNet, Caffe style)", LARGE, 32, CAFFE),
}


class Variant(NamedTuple):
    """One way of pre-training, as it differs from the row `cosine`."""

    label: str  # in tables
    options: Mapping[str, Any] = MappingProxyType({})  # options of the pre-trainer
    proposals: str = "paper"  # preset of the saliency masks, or `boxes` for random boxes


NO_KERNEL_LOSS = {"supervision": None}
LABELS_ALONE = {"prompts.strategy": "none", **NO_KERNEL_LOSS}
BOX_LABELS = {"source": "import"}  # they come without seeds
OFFICIAL = {"prompts.detach": True, "prompts.drop_rate": 0.1, "prompts.inject": "proposal"}
VARIANTS = {
    "labels": Variant("pseudo labels, no prompts", LABELS_ALONE),
    "random": Variant("prompts at random", {"prompts.strategy": "random"}),
    "sequential": Variant("prompts in sequence", {"prompts.strategy": "sequential"}),
    "cosine": Variant("prompts by cosine"),
    "cosine-no-kernel-loss": Variant("cosine, no kernel loss", NO_KERNEL_LOSS),
    "cosine-centered": Variant("cosine, centered loss", {"supervision.center": True}),
    "cosine-after-head": Variant("cosine after first head", {"prompts.inject": "proposal"}),
    "cosine-p2": Variant("cosine, prompts from P2", {"prompts.levels": ["P2"]}),
    "boxes": Variant("random boxes, no prompts", {**LABELS_ALONE, **BOX_LABELS}, "boxes"),
    "boxes-cosine": Variant("random boxes, cosine", BOX_LABELS, "boxes"),
    "official": Variant("the official preset", OFFICIAL, "official"),
}
COMPARISONS = [
    Comparison("cosine", "none", "pre-training beats none"),
    Comparison("cosine", "labels", "prompts beat pseudo labels alone, by 1.8 AP in the paper"),
    Comparison("cosine-no-kernel-loss", "labels", "prompts alone do, without the kernel loss"),
    Comparison("cosine", "sequential", "cosine beats sequential"),
    Comparison("sequential", "random", "sequential beats random"),
    Comparison("cosine", "random", "cosine beats random"),
    Comparison("cosine", "cosine-no-kernel-loss", "the kernel loss adds 0.4 AP in the paper"),
    Comparison("cosine-centered", "cosine", "without its trivial solution, the kernel loss adds more"),
    Comparison("cosine-after-head", "cosine", "the released code decorates after the first head"),
    Comparison("cosine-p2", "cosine", "P5 has few cells in small images; P2 is finer"),
    Comparison("boxes", "none", "random boxes ruin a model without prompts"),
    Comparison("boxes-cosine", "boxes", "but not one with prompts"),
    Comparison("official", "cosine", "both presets work"),
]
METRICS = {
    "class_agnostic/segm_AR@100": "AR",
    "class_agnostic/segm_AR_l": "AR large",
    "class_agnostic/segm_best_iou": "best IoU",
    "class_agnostic/segm_mAP": "AP",
    "class_agnostic/segm_mAP_50": "AP50",
    "coco/segm_mAP": "AP, 80 classes",
}
NOTES = (
    "All but the last column are class-agnostic. AP needs confident scores, which come late in so short a "
    "training; AR at 100 masks and the mean over objects of the IoU with the best mask hardly depend on "
    "scores. After pre-training they are measured without prompts, before the model has seen a label."
)


def experiment(
    data_root: str,
    *,
    quick: bool = False,
    backbone: str = "mobilenet_v2_64",
    size: int | None = None,
    images: int | None = None,
    finetune_steps: int | None = None,
) -> Experiment:
    """The experiment.

    Args:
        data_root: folder of the data.
        quick: few small images, few steps and three rows.
        backbone: one of BACKBONES.
        size: longer side of the training images in pixels; by default the backbone's, see BACKBONES.
        images: images that pre-training sees; by default the backbone's.
        finetune_steps: steps of each fine-tuning; by default the backbone's.

    Raises:
        ValueError: an unknown backbone.
    """
    if backbone not in BACKBONES:
        raise ValueError(f"backbone: expected one of {', '.join(BACKBONES)}, got {backbone!r}")
    scale = QUICK if quick else BACKBONES[backbone].scale
    given = {"size": size, "images": images, "finetune_steps": finetune_steps}
    scale = scale._replace(**{name: one for name, one in given.items() if one is not None})
    model = BACKBONES[backbone]
    features = {**model.features, "weights": f"{data_root}/{model.features['weights']}"}

    def proposals(preset: str) -> Proposals:
        truth = "{data}/truth.json"
        if preset == "boxes":
            return Proposals(IMAGES, kind="random_boxes", options={"count": BOXES}, truth=truth)
        options = {"preset": preset}
        return Proposals(IMAGES, backbone=features, size=scale.proposal_size, options=options, truth=truth)

    def training(stage: str, options: dict[str, Any], cache: str, **rest: Any) -> Training:
        sizes = {
            "train_dataloader.dataset.pipeline.2.scale": scale.size,
            "val_dataloader.dataset.pipeline.1.scale": scale.size,
        }
        return Training(
            str(CONFIGS / f"{backbone}_{stage}.py"),
            val_images=f"{data_root}/{VAL}",
            val_annotations="{data}/val.json",
            options={**sizes, **options},
            arguments=["--weights", features["weights"], "--cache", cache],
            **rest,
        )

    def pretrain(variant: Variant) -> Training:
        options = {f"model.{name}": value for name, value in variant.options.items()}
        steps = max(1, scale.images // model.batch_size)
        return training("pretrain", options, "features", images=IMAGES, steps=steps)

    labelled = dict(images=f"{data_root}/{TRAIN}", steps=scale.finetune_steps)
    finetune = {
        name: training("finetune", {}, model.finetune_cache, annotations=labels, **labelled)
        for name, labels in LABELS.items()
    }
    rows = [
        Row("none", "no pre-training", finetune=finetune),
        *(
            Row(name, one.label, proposals(one.proposals), pretrain(one), finetune)
            for name, one in VARIANTS.items()
        ),
    ]
    names = QUICK_ROWS if quick else ("none", *VARIANTS)
    return Experiment(
        name="mini_coco",
        title=f"mini-COCO: {model.title}, {scale.size} pixels",
        rows=[row for row in rows if row.name in names],
        metrics=METRICS,
        comparisons=[one for one in COMPARISONS if one.first in names and one.second in names],
        prepare=functools.partial(prepare, data_root=data_root, limit=scale.limit),
        notes=NOTES,
    )


def prepare(folder: Path, seed: int, *, data_root: str, limit: int | None) -> None:
    """Fills `folder` with links to all unlabelled images, and with annotation files.

    `labels_10.json` has the first 10 % of the sorted ids, `truth.json` the objects of those images in
    `unlabelled/` that have annotations.

    Args:
        folder: where to put them.
        seed: random seed of the run, unused.
        data_root: folder of the original data.
        limit: images of each split, or None for all.

    Raises:
        FileNotFoundError: a folder of the data is missing.
    """
    root = Path(data_root)
    for part in (*UNLABELLED.values(), VAL):
        if not (root / part).is_dir():
            raise FileNotFoundError(
                f"--data-root: expected images in {root / part}, which is no folder; the data have "
                "coco_mini/ (train, val, unlabeled, annotations), bsds500/ and weights/"
            )
    for split, part in UNLABELLED.items():
        links = folder / "unlabelled" / split
        links.mkdir(parents=True, exist_ok=True)
        for path in list_images(root / part)[:limit]:
            link = links / path.name
            if not link.is_symlink():
                link.symlink_to(path.resolve())
    train, val = (
        first_images(load_coco(root / ANNOTATIONS.format(split), root / images), limit)
        for split, images in (("train", TRAIN), ("val", VAL))
    )
    save_coco(val, folder / "val.json")
    save_coco(train, folder / "labels_100.json")
    tenth = max(1, round(len(train["images"]) / 10))
    save_coco(first_images(train, tenth), folder / "labels_10.json")
    named = [{**image, "file_name": f"train/{image['file_name']}"} for image in train["images"]]
    save_coco({**train, "images": named}, folder / "truth.json")


def first_images(coco: dict[str, Any], count: int | None) -> dict[str, Any]:
    """The first images by id with their annotations, and all categories."""
    images = sorted(coco["images"], key=lambda image: image["id"])[:count]
    ids = {image["id"] for image in images}
    annotations = [one for one in coco["annotations"] if one["image_id"] in ids]
    return {**coco, "images": images, "annotations": annotations}
