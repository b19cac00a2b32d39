"""Writing a traced detector to a file."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.export import Dim, ExportedProgram

import sp_fast
from sp_fast.export.segmenter import Segmenter
from sp_fast.inference.onnx import METADATA, OUTPUTS
from sp_fast.inference.program import ABOUT

LARGEST_SIDE, LARGEST_BATCH = 32768, 4096


def trace(model: Segmenter) -> ExportedProgram:
    """Traces a model with dynamic batch, height and width.

    Raises:
        ValueError: an operation that `torch.export` cannot trace; the message names it.
    """
    # Sizes that differ from each other and from 0 and 1, to which tracing would specialise.
    image = torch.zeros(2, 90, 150, 3, dtype=torch.uint8)
    shapes = {
        0: Dim("batch", max=LARGEST_BATCH),
        1: Dim("height", max=LARGEST_SIDE),
        2: Dim("width", max=LARGEST_SIDE),
    }
    try:
        with torch.no_grad():
            program = torch.export.export(
                model,
                (image,),
                dynamic_shapes=dict(images=shapes),
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
    except Exception as error:  # any type, depending on what stands in the way
        raise _unexportable(model, "torch.export", error) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, in every node
    return program


def write_onnx(
    model: Segmenter, program: ExportedProgram, path: Path, classes: Sequence[str], opset: int | None
) -> None:
    """Writes a traced model as ONNX.

    Raises:
        ValueError: an operation that ONNX lacks; the message names it.
    """
    # Its optimiser warns of what it leaves as it is.
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                program,
                dynamo=True,
                input_names=["images"],
                output_names=list(OUTPUTS),
                opset_version=opset,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise _unexportable(model, "ONNX", error) from error
    if exported is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    exported.model.metadata_props[METADATA] = _about(model, classes)
    for node in exported.model.graph.all_nodes():
        node.metadata_props.clear()  # where PyTorch's exporter got the node from: half of a small file
    exported.save(path)


def write_program(model: Segmenter, program: ExportedProgram, path: Path, classes: Sequence[str]) -> None:
    """Writes a traced model as PyTorch's .pt2."""
    torch.export.save(program, path, extra_files={ABOUT: _about(model, classes)})


def _about(model: Segmenter, classes: Sequence[str]) -> str:
    preparing = model.preprocessing
    return json.dumps(
        dict(
            version=sp_fast.__version__,
            family=type(model.detector).__name__,
            classes=list(classes),
            scale=[preparing.longer, preparing.shorter],
            input="images: RGB, uint8 [batch, height, width, 3]",
        )
    )


def _unexportable(model: Segmenter, what: str, error: Exception) -> ValueError:
    family = type(model.detector).__name__
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return ValueError(f"model: this {family} cannot be exported with {what}: {lines[0]}")
