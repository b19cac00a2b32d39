"""The paper's protocol: data, initial weights, pre-training and fine-tuning.

A data root holds the data sets as `sp-fast data` prepares them, and weights:

    unlabeled2017/  train2017/  val2017/
    annotations/instances_{train2017,train2017.10,train2017.5,val2017}.json
    cityscapes/leftImg8bit/{train,val}/
    cityscapes/annotations/instancesonly_filtered_gtFine_{train,val}.json
    ctw1500/imgs/{training,test}/  ctw1500/instances_{training,test}.json
    weights/{densecl,imagenet,moco_v2,swav}_r50.pth
    freesolo.json  detreg_regions.json  (Table 7)
    results/{freesolo,up_detr,detreg}.json  (Table 6)
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sp_fast.configs import config_names
from sp_fast.experiments.experiment import Experiment, Proposals, Row, Training
from sp_fast.experiments.paper.inputs import INITIALISED, UNLABELLED, inputs

WITHOUT_PROMPTS = {"model.prompts.strategy": "none", "model.supervision": None}
SP = "sp"
# Initialisations that are compared, as the paper's tables call them.
INITIALISATIONS = {
    "imagenet": "Img. Sup.",
    "densecl": "DenseCL",
    "swav": "SwAV",
    "moco_v2": "MoCo-v2",
    SP: "SP",
}


class Data(NamedTuple):
    """A data set to fine-tune on: its title, config, and files below the data root."""

    title: str
    config: str  # what follows the model's name: knet_r50/CONFIG
    images: str
    annotations: str
    val_images: str
    val_annotations: str


def _coco(title: str, config: str, part: str) -> Data:
    annotations = "annotations/instances_{}.json"
    return Data(
        title, config, "train2017", annotations.format(part), "val2017", annotations.format("val2017")
    )


CITYSCAPES = "cityscapes/annotations/instancesonly_filtered_gtFine_{}.json"
DATA = {
    "coco-5": _coco("COCO 5 %", "finetune_coco_5", "train2017.5"),
    "coco-10": _coco("COCO 10 %", "finetune", "train2017.10"),
    "coco": _coco("COCO", "finetune_coco", "train2017"),
    "cityscapes": Data(
        "Cityscapes",
        "finetune_cityscapes",
        "cityscapes/leftImg8bit/train",
        CITYSCAPES.format("train"),
        "cityscapes/leftImg8bit/val",
        CITYSCAPES.format("val"),
    ),
    "ctw1500": Data(
        "CTW1500",
        "finetune_ctw1500",
        "ctw1500/imgs/training",
        "ctw1500/instances_training.json",
        "ctw1500/imgs/test",
        "ctw1500/instances_test.json",
    ),
}
# Models with a config for each data set; others take their `finetune` for all.
MODELS = {
    "knet_r50": "K-Net",
    "queryinst_r50": "QueryInst",
    "mask2former_r50": "Mask2Former",
    "mask_rcnn_r50": "Mask R-CNN",
    "solov2_r50": "SOLOv2",
}
# Models whose fine-tuning on CTW1500 is shorter after SP.
SHORTER_AFTER_SP = ("queryinst_r50", "mask2former_r50")
# Models trained with SGD at a learning rate meant for 16 images per step.
CNNS = ("mask_rcnn_r50", "solov2_r50")
BATCH, CTW1500_BATCH, CNN_BATCH = 96, 32, 16
CURVE_POINTS = 10
QUICK = {"pretrain_steps": 2, "finetune_steps": 2, "size": 128, "batch_size": 2, "total_batch": 2}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Makes the proposals and trainings of the paper's experiments.

    Attributes:
        data_root: folder of the data and weights.
        model: prefix of the configs' names, such as `knet_r50`.
        initial: weights that pre-training starts from and makes its proposals with, a key of INITIALISATIONS.
        pretrain_epochs: length of pre-training, if not the config's; or give `pretrain_steps`.
        finetune_epochs: length of each fine-tuning, if not the config's; or give `finetune_steps`.
        pretrain_steps: see `pretrain_epochs`.
        finetune_steps: see `finetune_epochs`.
        size: longest side of images in pixels, for small data; by default the config's scales.
        batch_size: images per batch of one process, if not the config's.
        total_batch: images per step over all processes; by default the paper's 96, 32 on CTW1500, and 16 for
            Mask R-CNN and SOLOv2.

    Raises:
        ValueError: unknown `initial` or `model`, a length in both units, or not a whole number of at least 1.
    """

    data_root: str
    model: str = "knet_r50"
    initial: str = "densecl"
    pretrain_epochs: int | None = None
    finetune_epochs: int | None = None
    pretrain_steps: int | None = None
    finetune_steps: int | None = None
    size: int | None = None
    batch_size: int | None = None
    total_batch: int | None = None

    def __post_init__(self) -> None:
        if self.initial not in INITIALISED:
            raise ValueError(f"initial: expected one of {', '.join(INITIALISED)}, got {self.initial!r}")
        models = {name.partition("/")[0] for name in config_names() if "/finetune" in name}
        if self.model not in models:
            raise ValueError(f"model: expected one of {', '.join(sorted(models))}, got {self.model!r}")
        numbers = [one.name for one in dataclasses.fields(self) if one.default is None]
        for name in numbers:
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")
        for stage in ("pretrain", "finetune"):
            if None not in (getattr(self, f"{stage}_epochs"), getattr(self, f"{stage}_steps")):
                raise ValueError(f"{stage}_steps: expected steps or epochs, got both; leave one out")

    @property
    def model_title(self) -> str:
        """The model's name in the paper, or else that of its configs."""
        return MODELS.get(self.model, self.model)

    def path(self, name: str) -> str:
        """A path below the data root."""
        return f"{self.data_root}/{name}"

    def weights(self, initial: str) -> str:
        """File of published weights of the model's backbone."""
        return self.path(f"weights/{initial}_{self._backbone}.pth")

    def proposals(self) -> Proposals:
        """Saliency masks of the unlabelled images."""
        network = {"r50": "resnet50"}.get(self._backbone, self._backbone)
        backbone = {"name": network, "weights": self.weights(self.initial)}
        size = 640 if self.size is None else min(640, self.size)
        return Proposals(self.path(UNLABELLED), backbone=backbone, size=size)

    def pretrain(self, options: Mapping[str, Any] | None = None, annotations: str | None = None) -> Training:
        """Pre-training with saliency prompts; `annotations` are pseudo labels from elsewhere."""
        config = f"{self.model}/pretrain"
        return Training(
            config,
            self.path(UNLABELLED),
            annotations,
            steps=self.pretrain_steps,
            epochs=self.pretrain_epochs,
            options={**self._scales(config), **(options or {})},
            arguments=["--weights", self.weights(self.initial), *self._batch(BATCH)],
        )

    def finetune(self, data: str, initial: str, *, every_epoch: bool = False) -> Training:
        """Fine-tuning on `data` of DATA from `initial` of INITIALISATIONS, where SP is the pre-training.

        `every_epoch`: validate after each epoch, for a curve; ten times where the length is in steps.
        """
        which = DATA[data]
        short = initial == SP and data == "ctw1500" and self.model in SHORTER_AFTER_SP
        config = f"{self.model}/{which.config}{'_sp' if short else ''}"
        if self.model not in MODELS:
            config = f"{self.model}/finetune"
        interval = max(1, self.finetune_steps // CURVE_POINTS) if self.finetune_steps else 1
        batch = CNN_BATCH if self.model in CNNS else CTW1500_BATCH if data == "ctw1500" else BATCH
        return Training(
            config,
            self.path(which.images),
            self.path(which.annotations),
            self.path(which.val_images),
            self.path(which.val_annotations),
            steps=self.finetune_steps,
            epochs=self.finetune_epochs,
            options={**self._scales(config), **({"train_cfg.val_interval": interval} if every_epoch else {})},
            arguments=[*([] if initial == SP else ["--weights", self.weights(initial)]), *self._batch(batch)],
        )

    def experiment(
        self, name: str, title: str, rows: Sequence[Row], metrics: Mapping[str, str], **options: Any
    ) -> Experiment:
        """An `Experiment` with the files of the data root; it says if settings are not the paper's."""
        others = [
            {"name": one.name, "value": getattr(self, one.name), "reason": f"given; the paper's: {paper}"}
            for one in dataclasses.fields(self)
            for paper in [one.default or "see the config"]
            if one.name not in ("data_root", "batch_size") and getattr(self, one.name) != one.default
        ]
        if others:
            title += ", not with the paper's settings"
        files = inputs(self.data_root, self._backbone)
        return Experiment(name, title, rows, metrics, inputs=files, settings=others, **options)

    @property
    def _backbone(self) -> str:
        return "r50" if self.model in MODELS else self.model.partition("_")[2]

    def _batch(self, total: int) -> list[str]:
        own = [] if self.batch_size is None else ["--batch-size", str(self.batch_size)]
        return [*own, "--total-batch", str(self.total_batch or total)]

    def _scales(self, config: str) -> dict[str, Any]:
        return {} if self.size is None else pipelines_of_size(config, self.size)


def pipelines_of_size(config: str, size: int) -> dict[str, Any]:
    """The pipelines of a config, by their place in it, with all images resized to at most `size` pixels."""
    from mmengine.config import Config

    from sp_fast.configs import find_config

    cfg = Config.fromfile(find_config(config), import_custom_modules=False).to_dict()
    found = {}
    for loader in ("train_dataloader", "val_dataloader"):
        place, dataset = f"{loader}.dataset", (cfg.get(loader) or {}).get("dataset", {})
        while "dataset" in dataset:  # RepeatDataset and the like
            place, dataset = f"{place}.dataset", dataset["dataset"]
        if "pipeline" in dataset:
            found[f"{place}.pipeline"] = [
                {"type": "Resize", "scale": size, "keep_ratio": True} if "Resize" in one["type"] else one
                for one in dataset["pipeline"]
                if one["type"] != "RandomCrop"
            ]
    return found


def on_protocol(
    *, model: bool = True
) -> Callable[[Callable[[Protocol], Experiment]], Callable[..., Experiment]]:
    """Makes a function of a `Protocol` take the protocol's fields, and `quick` for a smoke run.

    Without `model`, the experiment itself chooses the models.
    """
    fields = list(inspect.signature(Protocol).parameters.values())
    fields = [one for one in fields if model or one.name != "model"]
    quick = inspect.Parameter(
        "quick", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=False, annotation=bool
    )
    signature = inspect.Signature([*fields, quick], return_annotation=Experiment)

    def decorate(make: Callable[[Protocol], Experiment]) -> Callable[..., Experiment]:
        @functools.wraps(make)
        def from_arguments(*args: Any, **kwargs: Any) -> Experiment:
            given = signature.bind(*args, **kwargs).arguments
            if given.pop("quick", False):
                # A length given in epochs replaces the one in steps.
                short = {name: n for name, n in QUICK.items() if name.replace("steps", "epochs") not in given}
                given = {**short, **given}
            return make(Protocol(**given))

        from_arguments.__signature__ = signature  # type: ignore[attr-defined]
        return from_arguments

    return decorate
