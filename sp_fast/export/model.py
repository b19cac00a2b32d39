"""Exporting a model, and comparing the file with it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import sp_fast
from sp_fast.data.images import list_images, read_image
from sp_fast.data.synthetic import make_scene
from sp_fast.export.difference import MASKS, SCORES, Difference, difference, largest
from sp_fast.export.families import segmenter
from sp_fast.export.formats import trace, write_onnx, write_program
from sp_fast.inference.load import load, model_file
from sp_fast.inference.safetensors import write_safetensors
from sp_fast.inference.torch_model import TorchModel, read_checkpoint

FORMATS = {"onnx": ".onnx", "pt2": ".pt2", "safetensors": ".safetensors"}
SAMPLES = 10
_SCENES = ((480, 640), (333, 250), (160, 160))


def export_model(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    format: str | None = None,
    *,
    images: str | os.PathLike[str] | None = None,
    opset: int | None = None,
    overwrite: bool = False,
) -> Difference:
    """Exports a model, and compares the file with it before the file gets its name.

    Args:
        path: a run's folder or a checkpoint; see `sp_fast.load`.
        out: the file to write.
        format: "onnx"; "pt2", a program of `torch.export`; "safetensors", weights with config and classes; or
            None: by the suffix of `out`.
        images: folder of images to compare on, of which ten are taken; None: three synthetic scenes.
        opset: version of ONNX's operators; None: that of PyTorch's exporter.
        overwrite: whether an existing file is replaced.

    Returns:
        The largest differences between the file's instances and the model's.

    Raises:
        FileNotFoundError: no such model or folder of images.
        FileExistsError: `out` exists.
        ValueError: an unknown format or family of models, an operation that cannot be exported, or results
            that differ by more than MASKS or SCORES.
    """
    out = Path(out)
    format = _format_of(out, format)
    _check(out, overwrite)
    samples = sample_images(images)
    file = model_file(path)
    if file.suffix in (".onnx", ".pt2"):
        raise ValueError(
            f"model: expected a checkpoint or a run's folder, got {file}, which is exported already"
        )
    model = TorchModel.from_checkpoint(file)
    there = next(parent for parent in out.absolute().parents if parent.is_dir())
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=there) as folder:
        beside = Path(folder, out.name)
        if format == "safetensors":
            checkpoint = read_checkpoint(file)
            write_safetensors(
                beside,
                checkpoint.state,
                checkpoint.config.pretty_text,
                checkpoint.classes,
                sp_fast.__version__,
            )
        else:
            write_graph(model, beside, format, opset)
        found = compare(model, beside, samples)
        if not found.tolerable:
            raise ValueError(
                f"--out: {out} was not written: its results differ from the model's in {found.masks:.3%} of "
                f"the masks' pixels (at most {MASKS:.1%}) and by {found.scores:.1e} in the scores (at most "
                f"{SCORES})"
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        os.replace(beside, out)
    return found


def write_graph(model: TorchModel, out: Path, format: str, opset: int | None = None) -> None:
    """Writes a model as "onnx" or "pt2", with its pre- and post-processing.

    Raises:
        ValueError: a family, a test pipeline or an operation that cannot be exported.
    """
    module = segmenter(model.detector, image_scale(model.resize))
    program = trace(module)
    if format == "onnx":
        write_onnx(module, program, out, model.classes, opset)
    else:
        write_program(module, program, out, model.classes)


def image_scale(steps: Sequence[dict]) -> tuple[int, int]:
    """The scale of the one Resize step that a test pipeline may have between reading and packing.

    Raises:
        ValueError: other steps, or a Resize that does not keep the aspect ratio.
    """
    kinds = [step["type"].removeprefix("mmdet.") for step in steps]
    if kinds != ["Resize"] or not steps[0].get("keep_ratio") or not steps[0].get("scale"):
        raise ValueError(
            "model: expected a test pipeline with dict(type='Resize', scale=(W, H), keep_ratio=True) alone "
            f"between reading and packing, got {[dict(step) for step in steps]}"
        )
    scale = steps[0]["scale"]
    longer, shorter = (scale, scale) if isinstance(scale, int) else scale
    return longer, shorter


def compare(model: TorchModel, exported: Path, images: Sequence[np.ndarray]) -> Difference:
    """The largest differences between a model and an exported file, over images, uint8 [H, W, 3]."""
    other = load(exported, device=model.device)
    return largest(
        difference(*(one.predict(image, threshold=0.0, top_k=1000) for one in (model, other)))
        for image in images
    )


def sample_images(folder: str | os.PathLike[str] | None) -> list[np.ndarray]:
    """Up to SAMPLES images of a folder, spread evenly, or synthetic scenes of three sizes."""
    if folder is None:
        return [
            make_scene(max(size), (0, 0, k)).image[: size[0], : size[1]] for k, size in enumerate(_SCENES)
        ]
    paths = list_images(folder)
    chosen = np.unique(np.linspace(0, len(paths) - 1, SAMPLES).round().astype(int))
    return [read_image(paths[k]) for k in chosen]


def _format_of(out: Path, format: str | None) -> str:
    if format not in (None, *FORMATS):
        raise ValueError(f"--format: expected {', '.join(FORMATS)}, got {format!r}")
    by_suffix = {suffix: name for name, suffix in FORMATS.items()}.get(out.suffix)
    if by_suffix is None:
        suffixes = [FORMATS[format]] if format else FORMATS.values()
        raise ValueError(f"--out: expected a file name that ends in {' or '.join(suffixes)}, got {out}")
    if format not in (None, by_suffix):
        raise ValueError(
            f"--format, --out: expected a file name that ends in {FORMATS[str(format)]} for --format "
            f"{format}, got {out}; leave out --format for {by_suffix}"
        )
    return by_suffix


def _check(out: Path, overwrite: bool) -> None:
    if out.is_dir():
        raise IsADirectoryError(f"--out: expected a file to write, got the folder {out}")
    if out.exists() and not overwrite:
        raise FileExistsError(f"--out: {out} exists; choose another name, or pass --overwrite")
