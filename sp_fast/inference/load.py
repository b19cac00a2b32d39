"""Finding a model's file, and building the model that it holds."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch

from sp_fast.inference.model import Model

EXPORTED = (".onnx", ".pt2")
# In order of preference: what `fit` ends with, the best and the last state of a training, pre-training's end.
_IN_A_RUN = ("model.pth", "best*.pth", "latest.pth", "epoch_*.pth", "iter_*.pth", "pretrained.pth")


def load(path: str | os.PathLike[str], *, device: str | torch.device = "auto") -> Model:
    """Loads a model to predict with.

    Args:
        path: the folder of a run, whose `model.pth`, best or last checkpoint is taken, in this order; a
            checkpoint of this package or of mmdet, which holds its config; or an exported file, .onnx or
            .pt2. No code in the file is run.
        device: "cpu", "cuda", "cuda:1", ...; "auto" is the GPU, if there is one.

    Returns:
        A model; see `Model.predict`.

    Raises:
        FileNotFoundError: no such file or folder, or a folder without a checkpoint.
        ValueError: not a checkpoint, or one that lacks what it takes to predict: its config, its class names,
            or any tensor of the model. The message says which.
        ImportError: a checkpoint, and mmdet is not installed.
    """
    file = model_file(path)
    device = _device(device)
    if file.suffix in EXPORTED:
        from sp_fast.inference.onnx import OnnxModel

        return OnnxModel(file)
    try:
        from sp_fast.inference.torch_model import TorchModel
    except ModuleNotFoundError as error:
        raise ImportError(
            f"model: a checkpoint needs mmdet to predict ({error}): pip install 'sp_fast[mmdet]'"
        ) from error
    return TorchModel.from_checkpoint(file, device)


def model_file(path: str | os.PathLike[str]) -> Path:
    """The file that `load` reads for a file or the folder of a run."""
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"model: expected a run's folder, a checkpoint or an exported file, got {path}"
        )
    if path.is_file():
        return path
    for pattern in _IN_A_RUN:
        files = list(path.glob(pattern))
        if files:
            return max(files, key=lambda file: file.stat().st_mtime)
    raise FileNotFoundError(
        f"model: expected a checkpoint in the folder {path} ({', '.join(_IN_A_RUN)}), found none"
    )


def fingerprint(path: str | os.PathLike[str]) -> str:
    """Shortened hash of the file that `load` reads."""
    digest = hashlib.sha256()
    with model_file(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def _device(name: str | torch.device) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device: {name} cannot be used here ({str(error).splitlines()[0]})") from None
