"""Predicting with the detectors of mmdet that checkpoints hold."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

import sp_fast.models  # noqa: F401  (the mmcv bridge has to be there before mmdet)

# isort: split
from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope

from sp_fast.inference.config_text import check_types, parse_config
from sp_fast.inference.instances import Instances
from sp_fast.inference.model import Model, UnfitImageError
from sp_fast.inference.safetensors import SAFETENSORS, read_safetensors
from sp_fast.knet.prediction import masks_at_image_size
from sp_fast.mmdet_plugin.detector_config import detector_config
from sp_fast.mmdet_plugin.safe_resume import load_checkpoint_file
from sp_fast.pretraining.adapters import adapter_class
from sp_fast.pretraining.folding import is_folded, plain_state
from sp_fast.weights import load_state

_READERS = ("ReadImage", "LoadImageFromFile", "LoadImageFromNDArray")
_META = ("ori_shape", "img_shape", "scale_factor", "flip", "flip_direction")


@dataclass(frozen=True)
class Checkpoint:
    """What it takes to predict with a detector.

    Attributes:
        config: the detector's config: `model` and `test_dataloader`.
        state: weights by name, those of the class head too.
        classes: names of the classes.
    """

    config: Config
    state: dict[str, Tensor]
    classes: tuple[str, ...]


def read_checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint of a detector, of its pre-training, or `pretrained.pth`, without running code in it.

    Raises:
        FileNotFoundError, ValueError: see `sp_fast.load`.
    """
    content = read_safetensors(path) if path.suffix == SAFETENSORS else load_checkpoint_file(path)
    meta = content.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    text = meta.get("cfg")
    if not isinstance(text, str) or not isinstance(content.get("state_dict"), dict):
        raise ValueError(
            f"{path}: expected a trained model, in a checkpoint with its config as `sp-fast fit`, `sp-fast "
            "train` and mmdet write them, got weights alone, such as those of a backbone; they are what "
            "training starts from: `sp-fast fit --weights`"
        )
    try:
        values = parse_config(text)
        for part in ("model", "test_dataloader", "val_dataloader", "test_pipeline"):
            check_types(values.get(part) or {})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    config = Config(values)
    state = {name.removeprefix("module."): value for name, value in content["state_dict"].items()}
    state |= content.get("class_head", {})
    if "model" not in config:
        raise ValueError(f"{path}: expected the config of a model, got one without `model`")
    if config.model.type == "SaliencyPromptPretrainer":
        config = detector_config(config)
        kernels = _initial_kernels(path, config.model.type) if is_folded(state) else ""
        state = plain_state(state, kernels)
        return Checkpoint(config, state, tuple(config.test_dataloader.dataset.metainfo.classes))
    return Checkpoint(config, state, _class_names(path, meta))


def _initial_kernels(path: Path, detector: str) -> str:
    """Name of the parameter that prompts are folded into."""
    found = MODELS.get(detector)
    adapter = adapter_class(found) if found else None
    if adapter is None:
        raise ValueError(f"{path}: {detector} is not known here; import the module that registers it first")
    return adapter.initial_kernels


def _class_names(path: Path, meta: dict[str, Any]) -> tuple[str, ...]:
    named = {key.lower(): value for key, value in {**meta, **(meta.get("dataset_meta") or {})}.items()}
    classes = named.get("classes")
    if not isinstance(classes, (list, tuple)) or not classes:
        raise ValueError(f"{path}: expected the names of the classes in meta['dataset_meta'], got none")
    return tuple(map(str, classes))


class TorchModel(Model):
    """A detector of mmdet that predicts masks.

    Args:
        detector: the detector with its weights, on its device.
        classes: names of its classes.
        resize: steps of its test pipeline between reading and packing an image, as configs.
        batch_size: largest number of images that run at once; default: 8 on a GPU, 1 on a CPU, where larger
            batches take more memory and gain nothing.
    """

    def __init__(
        self,
        detector: nn.Module,
        classes: Sequence[str],
        resize: Sequence[dict] = (),
        batch_size: int | None = None,
    ) -> None:
        self.detector: Any = detector.eval()
        self.device = next(detector.parameters()).device
        self.resize = tuple(resize)
        super().__init__(tuple(classes), batch_size or (1 if self.device.type == "cpu" else 8))
        with DefaultScope.overwrite_default_scope("mmdet"):
            self._pipeline = Compose([*resize, dict(type="PackDetInputs", meta_keys=_META)])

    @classmethod
    def from_checkpoint(cls, path: Path, device: str | torch.device = "cpu") -> TorchModel:
        """Builds the detector of a checkpoint; see `sp_fast.load`."""
        checkpoint = read_checkpoint(path)
        with DefaultScope.overwrite_default_scope("mmdet"):
            try:
                detector = MODELS.build(checkpoint.config.model)
            except (KeyError, RuntimeError, TypeError) as error:
                raise ValueError(
                    f"{path}: its model cannot be built here ({str(error).splitlines()[0]}); import the "
                    "module that registers it first"
                ) from error
        # Nothing may stay random: a prediction of such a model would look like any other.
        load_state(detector, checkpoint.state, path)
        return cls(detector.to(device), checkpoint.classes, _resize_steps(checkpoint.config))

    @torch.inference_mode()
    def _infer(self, images: list[np.ndarray]) -> list[Instances]:
        with DefaultScope.overwrite_default_scope("mmdet"):
            packed = [self._prepare(image) for image in images]
            # Padding changes what a network computes, so only images that are padded alike share a batch.
            alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
            for k, one in enumerate(packed):
                alike[self._padded_shape(one["inputs"])].append(k)
            found: dict[int, Instances] = {}
            for group in alike.values():
                batch = {key: [packed[k][key] for k in group] for key in ("inputs", "data_samples")}
                samples = self.detector.test_step(batch)
                found |= {k: self._instances(one) for k, one in zip(group, samples, strict=True)}
        return [found[k] for k in range(len(images))]

    @torch.inference_mode()
    def kernel_masks(self, image: np.ndarray, size: tuple[int, int]) -> Tensor:
        """The masks of all kernels (K-Net) or queries (Mask2Former) after the last stage, in their order.

        Args:
            image: RGB image, uint8 [H, W, 3].
            size: height and width that the masks of the image, without padding, are resized to.

        Returns:
            Probabilities, fp32 [N, *size], on the model's device.

        Raises:
            ValueError: a detector of another family.
        """
        family = type(self.detector).__name__
        if family not in ("KNet", "Mask2Former"):
            raise ValueError(
                f"model: expected a K-Net or a Mask2Former, whose kernels have masks, got {family}"
            )
        with DefaultScope.overwrite_default_scope("mmdet"):
            packed = {key: [value] for key, value in self._prepare(image).items()}
            batch = self.detector.data_preprocessor(packed, False)
            inputs, samples = batch["inputs"], batch["data_samples"]
            logits = self.detector(inputs, samples, mode="tensor")[1]
        last = logits[-1] if isinstance(logits, list) else logits
        shape = samples[0].img_shape
        # A few at a time: all masks of a large image take half a gigabyte at its size.
        parts = last[0].split(16)
        return torch.cat([masks_at_image_size(part, inputs.shape[-2:], shape, size) for part in parts])

    def _prepare(self, image: np.ndarray) -> dict[str, Any]:
        shape = image.shape[:2]
        bgr = np.ascontiguousarray(image[..., ::-1])
        try:
            return self._pipeline(dict(img=bgr, img_shape=shape, ori_shape=shape, scale_factor=(1.0, 1.0)))
        except cv2.error as error:  # a side of less than one pixel when resized
            raise UnfitImageError(shape, error) from error

    def _padded_shape(self, pixels: Tensor) -> tuple[int, ...]:
        divisor = getattr(self.detector.data_preprocessor, "pad_size_divisor", 1)
        return tuple(-(-side // divisor) * divisor for side in pixels.shape[-2:])

    def _instances(self, sample: Any) -> Instances:
        found = sample.pred_instances
        if "masks" not in found:
            raise ValueError(
                f"model: expected a model that predicts masks, got {type(self.detector).__name__}, which "
                "predicts boxes only"
            )
        labels = found.labels.cpu().numpy()
        if labels.max(initial=-1) >= len(self.classes):
            raise ValueError(
                f"model: expected labels below {len(self.classes)}, the number of the checkpoint's classes, "
                f"got {labels.max()}: its config and its class names do not belong together"
            )
        return Instances.from_masks(
            found.masks.bool().cpu().numpy(), found.scores.float().cpu().numpy(), labels, self.classes
        )


def _resize_steps(config: Config) -> list[dict]:
    """The steps of the test pipeline between reading and packing, without those that read annotations."""
    dataset = (config.get("test_dataloader") or config.get("val_dataloader") or {}).get("dataset", {})
    while "pipeline" not in dataset and "dataset" in dataset:  # mmdet's wrappers of data sets
        dataset = dataset["dataset"]
    steps = dataset.get("pipeline", config.get("test_pipeline", []))
    kinds = [step["type"].removeprefix("mmdet.") for step in steps]
    return [
        step
        for step, kind in zip(steps, kinds, strict=True)
        if kind not in _READERS and not kind.startswith("Pack") and "Annotations" not in kind
    ]
