"""Narrow models of the three families, from the shipped configs, and batches for them."""

import copy
from pathlib import Path

import sp_fast.models

# isort: split
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import Config
from mmengine.structures import InstanceData

from sp_fast.configuration import set_num_classes
from tests.pretraining.narrow import CHANNELS, FAMILIES, KERNELS, LAST_STAGE, NARROW, STAGES

BASES = Path(sp_fast.__file__).parent / "configs" / "_base_"
__all__ = [
    "CHANNELS",
    "FAMILIES",
    "KERNELS",
    "LAST_STAGE",
    "STAGES",
    "batch",
    "build",
    "build_plain",
    "losses_of",
    "prepared",
    "total",
]
_LOADED = {}


def detector_config(family, num_classes=1):
    """Config of a narrow detector of a family, from the shipped config."""
    if family not in _LOADED:
        _LOADED[family] = Config.fromfile(BASES / f"{family}_r50.py")
    cfg = copy.deepcopy(_LOADED[family])
    cfg.merge_from_dict({f"model.{name}": value for name, value in NARROW[family].items()})
    set_num_classes(cfg.model, num_classes)
    return cfg.model


def build_plain(family, num_classes=1, seed=0):
    """Builds the plain detector."""
    torch.manual_seed(seed)
    model = MODELS.build(detector_config(family, num_classes))
    model.init_weights()
    return model.train()  # puts the backbone's batch norm into eval mode


def build(family, seed=0, **options):
    """Builds a pre-trainer of a family, by default with kernel loss."""
    torch.manual_seed(seed)
    options.setdefault("supervision", dict(seed_channels=LAST_STAGE))
    config = dict(type="SaliencyPromptPretrainer", detector=detector_config(family), **options)
    model = MODELS.build(config)
    torch.manual_seed(seed)  # same initial weights with and without kernel loss
    model.init_weights()
    return model.train()  # puts the backbone's batch norm into eval mode


def batch(counts, *, seeds=True, size=(64, 96), narrower=24, seed=1):
    """Noise images with `counts` rectangular proposals; every other image is narrower and gets padded."""
    generator = torch.Generator().manual_seed(seed)
    inputs, samples = [], []
    for position, count in enumerate(counts):
        height, width = size[0], size[1] - narrower * (position % 2)
        inputs.append(torch.randint(0, 255, (3, height, width), generator=generator, dtype=torch.uint8))
        masks = torch.zeros(count, height, width, dtype=torch.uint8)
        corners = torch.randint(0, 30, (count, 2), generator=generator).tolist()
        for mask, (y, x) in zip(masks, corners, strict=True):
            mask[y : y + 24, x : x + 30] = 1
        boxes = torch.tensor([[x, y, x + 30, y + 24] for y, x in corners], dtype=torch.float32).reshape(-1, 4)
        instances = InstanceData(
            bboxes=boxes,
            labels=torch.zeros(count, dtype=torch.int64),
            masks=BitmapMasks(masks.numpy(), height, width),
        )
        if seeds:
            instances.seeds = torch.randn(count, LAST_STAGE, generator=generator)
        sample = DetDataSample(gt_instances=instances)
        sample.set_metainfo(
            dict(img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0))
        )
        samples.append(sample)
    return {"inputs": inputs, "data_samples": samples}


def prepared(model, data):
    """A copy of the batch, normalised and padded."""
    data = model.data_preprocessor(copy.deepcopy(data), training=True)
    return data["inputs"], data["data_samples"]


def losses_of(model, data, seed=0):
    """Losses of a copy of the batch; the seed determines the points that Mask2Former samples."""
    inputs, samples = prepared(model, data)
    torch.manual_seed(seed)
    return model.loss(inputs, samples)


def total(losses):
    """The sum of the losses."""
    return sum(value for name, value in losses.items() if "loss" in name)
