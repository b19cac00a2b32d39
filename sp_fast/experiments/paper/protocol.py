"""The paper's protocol: which pre-training, on which data, from which weights, fine-tuned how.

A data root holds the data sets as `sp-fast data` prepares them, and weights:

    unlabeled2017/  train2017/  val2017/
    annotations/instances_{train2017,train2017.10,train2017.5,val2017}.json
    cityscapes/leftImg8bit/{train,val}/
    cityscapes/annotations/instancesonly_filtered_gtFine_{train,val}.json
    ctw1500/imgs/{training,test}/  ctw1500/instances_{training,test}.json
    weights/{densecl,imagenet,moco_v2,swav}_r50.pth
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from sp_fast.experiments.experiment import Proposals, Training

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
# Models whose fine-tuning on CTW1500 is shorter after SP.
SHORTER_AFTER_SP = ("queryinst_r50", "mask2former_r50")


@dataclass(frozen=True)
class Protocol:
    """Makes the proposals and trainings of the paper's experiments.

    Attributes:
        data_root: folder of the data and weights.
        model: prefix of the configs' names, such as `knet_r50`.
        initial: weights that pre-training starts from and makes its proposals with, a key of INITIALISATIONS.
    """

    data_root: str
    model: str = "knet_r50"
    initial: str = "densecl"

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
        return Proposals(self.path("unlabeled2017"), backbone=backbone)

    def pretrain(self, options: Mapping[str, Any] | None = None, annotations: str | None = None) -> Training:
        """Pre-training with saliency prompts; `annotations` are pseudo labels from elsewhere."""
        return Training(
            f"{self.model}/pretrain",
            self.path("unlabeled2017"),
            annotations,
            options=dict(options or {}),
            arguments=["--weights", self.weights(self.initial)],
        )

    def finetune(self, data: str, initial: str, *, every_epoch: bool = False) -> Training:
        """Fine-tuning on a key of DATA from a key of INITIALISATIONS; from SP, of what was pre-trained.

        `every_epoch`: validate after each epoch, for a curve.
        """
        which = DATA[data]
        short = initial == SP and data == "ctw1500" and self.model in SHORTER_AFTER_SP
        return Training(
            f"{self.model}/{which.config}{'_sp' if short else ''}",
            self.path(which.images),
            self.path(which.annotations),
            self.path(which.val_images),
            self.path(which.val_annotations),
            options={"train_cfg.val_interval": 1} if every_epoch else {},
            arguments=[] if initial == SP else ["--weights", self.weights(initial)],
        )

    @property
    def _backbone(self) -> str:
        return self.model.partition("_")[2]
