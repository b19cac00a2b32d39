"""mini-COCO: what each part of the method gives on 919 unlabelled and 289 labelled images.

    sp-fast experiment run studies/mini_coco/experiment.py --data-root DATA --out runs/mini_coco --seeds 0,1,2

README.md says what DATA holds and what the rows are.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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


@dataclass(frozen=True)
class Scale:
    """How large a study is.

    Attributes:
        size: longer side of the training images in pixels, a multiple of 32.
        images: images that pre-training sees, each as often as it comes up.
        finetune_steps: steps of each fine-tuning.
        proposal_size: longer side in pixels of the images that the proposals are made from.
        limit: images of each split, or None for all.
    """

    size: int
    images: int
    finetune_steps: int
    proposal_size: int = 640
    limit: int | None = None


@dataclass(frozen=True)
class Backbone:
    """A backbone with weights from ImageNet; its configs are `configs/<name>_*.py`.

    Attributes:
        title: of the model.
        scale: of the study.
        batch_size: images per step of pre-training, as its config says.
        features: what makes the proposals: arguments of `build_backbone`, with `weights` within the data.
        finetune_cache: what fine-tuning keeps in memory; `features` where the backbone is frozen there too.
    """

    title: str
    scale: Scale
    batch_size: int
    features: Mapping[str, Any]
    finetune_cache: str = "ram"


MOBILENET = {"name": "mobilenet_v2", "stage": 4, "weights": "weights/mobilenet_v2_imagenet.pth"}
CAFFE = {
    "name": "resnet50",
    "style": "caffe",
    "stage": 3,
    "weights": "weights/resnet50_caffe_to_layer3.pth",
}
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


@dataclass(frozen=True)
class Variant:
    """One way of pre-training, as it differs from the row `cosine`.

    Attributes:
        label: what it is, for tables.
        proposals: preset of the saliency masks, or `boxes` for random boxes.
        prompts: options of the prompts.
        kernel_loss: options of the kernel loss, or None to leave it out.
    """

    label: str
    proposals: str = "paper"
    prompts: Mapping[str, Any] = field(default_factory=dict)
    kernel_loss: Mapping[str, Any] | None = field(default_factory=dict)


NO_PROMPTS = {"strategy": "none"}
VARIANTS = {
    "labels": Variant("pseudo labels, no prompts", prompts=NO_PROMPTS, kernel_loss=None),
    "random": Variant("prompts at random", prompts={"strategy": "random"}),
    "sequential": Variant("prompts in sequence", prompts={"strategy": "sequential"}),
    "cosine": Variant("prompts by cosine"),
    "cosine-no-kernel-loss": Variant("cosine, no kernel loss", kernel_loss=None),
    "cosine-centered": Variant("cosine, centered loss", kernel_loss={"center": True}),
    "cosine-after-head": Variant("cosine after first head", prompts={"inject": "proposal"}),
    "cosine-p2": Variant("cosine, prompts from P2", prompts={"levels": ["P2"]}),
    "boxes": Variant("random boxes, no prompts", "boxes", NO_PROMPTS, None),
    "boxes-cosine": Variant("random boxes, cosine", "boxes"),
    "official": Variant(
        "the official preset", "official", {"detach": True, "drop_rate": 0.1, "inject": "proposal"}
    ),
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
    scale = dataclasses.replace(scale, **{name: one for name, one in given.items() if one is not None})
    finetune = {name: _finetune(data_root, backbone, scale, labels) for name, labels in LABELS.items()}
    whole = Experiment(
        name="mini_coco",
        title=f"mini-COCO: {BACKBONES[backbone].title}, {scale.size} pixels",
        rows=[
            Row("none", "no pre-training", finetune=finetune),
            *(
                Row(
                    name,
                    variant.label,
                    _proposals(data_root, backbone, scale, variant.proposals),
                    _pretrain(data_root, backbone, scale, variant),
                    finetune,
                )
                for name, variant in VARIANTS.items()
            ),
        ],
        metrics=METRICS,
        comparisons=COMPARISONS,
        prepare=functools.partial(prepare, data_root=data_root, limit=scale.limit),
        notes=NOTES,
    )
    return whole.chosen(QUICK_ROWS) if quick else whole


def _proposals(root: str, backbone: str, scale: Scale, preset: str) -> Proposals:
    truth = "{data}/truth.json"
    if preset == "boxes":
        return Proposals(IMAGES, kind="random_boxes", options={"count": BOXES}, truth=truth)
    features = BACKBONES[backbone].features
    features = {**features, "weights": f"{root}/{features['weights']}"}
    return Proposals(
        IMAGES, backbone=features, size=scale.proposal_size, options={"preset": preset}, truth=truth
    )


def _pretrain(root: str, backbone: str, scale: Scale, variant: Variant) -> Training:
    options = {f"model.prompts.{name}": value for name, value in variant.prompts.items()}
    if variant.proposals == "boxes":
        options["model.source"] = "import"  # boxes come without seeds
    if variant.kernel_loss is None:
        options["model.supervision"] = None
    else:
        options.update({f"model.supervision.{name}": one for name, one in variant.kernel_loss.items()})
    steps = max(1, scale.images // BACKBONES[backbone].batch_size)
    return _training(
        root, backbone, "pretrain", scale, images=IMAGES, steps=steps, options=options, cache="features"
    )


def _finetune(root: str, backbone: str, scale: Scale, labels: str) -> Training:
    return _training(
        root,
        backbone,
        "finetune",
        scale,
        images=f"{root}/{TRAIN}",
        annotations=labels,
        steps=scale.finetune_steps,
        cache=BACKBONES[backbone].finetune_cache,
    )


def _training(
    root: str,
    backbone: str,
    stage: str,
    scale: Scale,
    *,
    cache: str,
    options: Mapping[str, Any] | None = None,
    **rest: Any,
) -> Training:
    sizes = {
        "train_dataloader.dataset.pipeline.2.scale": scale.size,
        "val_dataloader.dataset.pipeline.1.scale": scale.size,
    }
    return Training(
        str(CONFIGS / f"{backbone}_{stage}.py"),
        val_images=f"{root}/{VAL}",
        val_annotations="{data}/val.json",
        options={**sizes, **(options or {})},
        arguments=["--weights", f"{root}/{BACKBONES[backbone].features['weights']}", "--cache", cache],
        **rest,
    )


def prepare(folder: Path, seed: int, *, data_root: str, limit: int | None) -> None:
    """Fills `folder` with links to all unlabelled images, and with annotation files.

    `labels_10.json` has the first 10 % of the sorted ids, `truth.json` the objects of those images in
    `unlabelled/` that have annotations.

    Args:
        folder: of the data.
        seed: has no influence.
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
