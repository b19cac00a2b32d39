"""The study's models: the detector that is fine-tuned, its pre-trainer, and their losses on a batch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

import sp_fast.models  # noqa: F401  (gives mmdet the ops it imports)

# isort: split
import mmdet.models  # noqa: F401  (registers what the configs name)
from mmdet.registry import MODELS
from mmengine.config import Config
from torch import Tensor, nn

from sp_fast.configuration import set_num_classes
from sp_fast.knet.targets import Targets
from sp_fast.pretraining.adapters import Adapter, adapter_for
from sp_fast.pretraining.pretrainer import SaliencyPromptPretrainer
from sp_fast.pretraining.sources import StepProposals, mean_inside
from sp_fast.study.batches import Batch
from sp_fast.study.variants import Variant
from sp_fast.weights import load_backbone_weights

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "study"
BACKBONES = ("resnet50", "mobilenet_v2", "mobilenet_v2_64")


def load_settings(backbone: str) -> Config:
    """The config of one of BACKBONES, or of one's own in a file of the same entries.

    Raises:
        ValueError: neither.
    """
    path = CONFIGS / f"{backbone}.py" if backbone in BACKBONES else Path(backbone)
    if not path.is_file():
        raise ValueError(
            f"--backbone: expected {', '.join(BACKBONES)}, or a config file such as "
            f"{CONFIGS / 'mobilenet_v2.py'}, got {backbone}"
        )
    return Config.fromfile(path)


class Normalizer(nn.Module):
    """Pixels to what the backbone takes, as the config's data preprocessor says."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessor: dict[str, Any]) -> None:
        super().__init__()
        self.reverse = not preprocessor.get("bgr_to_rgb", False)
        self.register_buffer("mean", torch.tensor(preprocessor["mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocessor["std"]).view(1, 3, 1, 1))

    def forward(self, batch: Batch) -> Tensor:
        """fp32 `[B, 3, H, W]`; padding is 0."""
        pixels = batch.images.flip(1) if self.reverse else batch.images
        return (pixels.float() - self.mean) / self.std * batch.inside


class MemorySource(nn.Module):
    """Gives the pre-trainer the proposals of a batch out of memory.

    Seeds are the stored ones, or the mean features inside each mask where there are none.
    """

    def forward(self, adapter: Adapter, images: Tensor, features: Tensor, batch: Any) -> StepProposals:
        """See :class:`StepProposals`; `batch` is a :class:`Batch`."""
        targets = adapter.targets_from_masks(batch.masks, batch.boxes, batch.count, [])
        seeds = mean_inside(features, batch.masks) if batch.seeds is None else batch.seeds
        return StepProposals(targets, batch.boxes, seeds, batch.count)


def _detector_config(settings: Config, num_classes: int) -> Config:
    config = copy.deepcopy(settings.model)
    config.pop("data_preprocessor")  # the normalizer does its work
    set_num_classes(config, num_classes)
    return config


def build_detector(settings: Config, num_classes: int, seed: int, weights: Path | None) -> nn.Module:
    """The plain detector as every variant begins: weights of the backbone, the rest drawn with `seed`."""
    config = _detector_config(settings, num_classes)
    torch.manual_seed(seed)
    detector = MODELS.build(config)
    detector.init_weights()
    if weights is not None:
        load_backbone_weights(detector.backbone, weights)
    return detector


def build_pretrainer(
    settings: Config, variant: Variant, start: nn.Module, seed: int, seed_channels: int | None = None
) -> nn.Module:
    """The pre-trainer of a variant around a detector with the weights of `start`, its class heads apart.

    The backbone is frozen, as in the official preset.

    Args:
        settings: of the backbone.
        variant: with proposals.
        start: the plain detector.
        seed: of what `start` has not: the binary class heads and the linear layer of Eq. 9.
        seed_channels: D of the stored seeds; None for those of the backbone's last stage.
    """
    config = _detector_config(settings, 1)
    config.backbone.frozen_stages = settings.frozen_stages
    supervision = None
    if variant.supervision is not None:
        supervision = {"seed_channels": seed_channels or config.neck.in_channels[-1], **variant.supervision}
    torch.manual_seed(seed)
    pretrainer = SaliencyPromptPretrainer(
        config, source="import", prompts=dict(variant.prompts), supervision=supervision
    )
    torch.manual_seed(seed)  # whatever the kernel loss's layer has drawn: the class heads begin alike too
    pretrainer.init_weights()
    load_transferable(pretrainer.detector, adapter_for(start).transferable(start.state_dict()))
    pretrainer.source = MemorySource()
    return pretrainer


def load_transferable(detector: nn.Module, state: dict[str, Tensor]) -> None:
    """Loads all weights but the class heads'.

    Raises:
        ValueError: other keys differ.
    """
    result = detector.load_state_dict(state, strict=False)
    unfit = set(result.missing_keys) - (detector.state_dict().keys() - transferable_keys(detector))
    if unfit or result.unexpected_keys:
        raise ValueError(
            f"expected weights of the same detector, got {', '.join(result.unexpected_keys[:5]) or 'none'} "
            f"too many and without {', '.join(sorted(unfit)[:5]) or 'none'}"
        )


def transferable_keys(detector: nn.Module) -> set[str]:
    """Names of the weights that pre-training hands on."""
    return set(adapter_for(detector).transferable(detector.state_dict()))


def detector_losses(detector: Any, images: Tensor, batch: Batch) -> dict[str, Tensor]:
    """K-Net's losses on labelled objects."""
    first = detector.rpn_head(detector.extract_feat(images))
    targets = Targets(batch.masks, batch.labels, batch.count)
    return detector.loss_from(first, detector.roi_head(first), targets)[0]
