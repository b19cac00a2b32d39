"""`sp-fast export`: a model as a file that runs without mmdet."""

from pathlib import Path
from typing import Annotated, Literal

import typer

# A line with only \b keeps click from re-wrapping the paragraph below it.
EXAMPLES = """
\b
Examples:
  For onnxruntime, compared with the model on ten of your images:
    sp-fast export runs/fit --out model.onnx --images photos
  For torch.export.load:
    sp-fast export runs/fit/model.pth --out model.pt2
"""


def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A run's folder or a checkpoint.")],
    out: Annotated[Path, typer.Option(help="File to write: .onnx, .pt2 or .safetensors.")],
    format: Annotated[
        Literal["onnx", "pt2", "safetensors"] | None,
        typer.Option(
            help="onnx; a program of torch.export; or weights with config and classes [by --out's ending]."
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of images to compare model and file on [three synthetic scenes]."),
    ] = None,
    opset: Annotated[
        int | None, typer.Option(min=18, help="Version of ONNX's operators [PyTorch's choice].")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Export a trained model with its pre- and post-processing, and compare the file with the model."""
    from sp_fast.export import export_model

    found = export_model(model, out, format, images=images, opset=opset, overwrite=overwrite)
    typer.echo(
        f"{out}: {out.stat().st_size / 2**20:.1f} MiB. Largest difference from the model: "
        f"{found.masks:.4%} of the masks' pixels, {found.scores:.1e} in the scores."
    )
