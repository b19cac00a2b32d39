"""Predicting with exported ONNX files, without mmdet and PyTorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from sp_fast.inference.instances import Instances
from sp_fast.inference.model import Model, UnfitImageError

METADATA = "sp_fast"
OUTPUTS = ("scores", "labels", "boxes", "masks")


class OnnxModel(Model):
    """A model that `sp-fast export --format onnx` wrote, run by onnxruntime.

    Args:
        path: the file.
        device: "cpu", "cuda", "cuda:1", ..., or "auto": the GPU if onnxruntime can use one.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: not such a file, or a device that onnxruntime cannot use.
    """

    def __init__(self, path: Path, device: str = "auto") -> None:
        try:
            import onnxruntime
        except ImportError:
            raise ImportError(f"{path}: ONNX files need onnxruntime: pip install 'sp_fast[export]'") from None
        providers = _providers(device)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised too
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=providers)
        except Exception as error:  # onnxruntime's errors have no common base class
            raise ValueError(f"{path}: onnxruntime cannot load it ({str(error).splitlines()[0]})") from error
        about = self._session.get_modelmeta().custom_metadata_map.get(METADATA)
        if about is None:
            raise ValueError(
                f"{path}: expected a file that `sp-fast export` wrote, got one without its metadata"
            )
        super().__init__(tuple(json.loads(about)["classes"]))

    def _infer(self, images: list[np.ndarray]) -> list[Instances]:
        return [self._one(image) for image in images]

    def _one(self, image: np.ndarray) -> Instances:
        try:
            scores, labels, masks = self._session.run(["scores", "labels", "masks"], {"images": image[None]})
        except Exception as error:  # a side of less than one pixel when resized, or too little memory
            raise UnfitImageError(image.shape, error) from error
        return Instances.from_masks(masks[0], scores[0], labels[0], self.classes)


def _providers(device: str) -> list[Any]:
    import onnxruntime

    there = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    kind, _, number = device.partition(":")
    if kind == "cpu" or (kind == "auto" and not there):
        return ["CPUExecutionProvider"]
    if kind not in ("auto", "cuda") or not there:
        raise ValueError(
            f"device: onnxruntime {onnxruntime.__version__} cannot use {device} here; use cpu, or install "
            "onnxruntime-gpu for cuda"
        )
    return [("CUDAExecutionProvider", {"device_id": int(number or 0)}), "CPUExecutionProvider"]
