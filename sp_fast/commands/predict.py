"""`sp-fast predict`: the instances in images, with a trained model."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from sp_fast.commands.max_megapixels import MaxMegapixels

# A line with only \b keeps click from re-wrapping the paragraph below it.
EXAMPLES = """
\b
Examples:
  A folder, with the best checkpoint of a run:
    sp-fast predict runs/finetune photos --out found
  One checkpoint, two images, files for LabelMe and YOLO:
    sp-fast predict runs/finetune/latest.pth a.jpg b.jpg \\
      --out found --save labelme,yolo
  Small objects in large images:
    sp-fast predict runs/finetune aerial --out found --tile 1024

found/predictions.json is COCO-format, with category ids 1, 2, ... in the order of the model's classes. If
interrupted, run the same command again to resume.
"""
_SAVED = ("png", "yolo", "labelme")
_WRITTEN = {"overlays": "Overlays", "png": "Masks as PNG", "yolo": "YOLO", "labelme": "LabelMe"}


def _kinds(text: str) -> Any:
    kinds = [kind.strip() for kind in text.split(",") if kind.strip()]
    if not set(kinds) <= set(_SAVED):
        raise typer.BadParameter(f"expected some of {', '.join(_SAVED)}, such as png,yolo, got {text!r}")
    return kinds


def predict(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Folder of a run, checkpoint, or exported file.")
    ],
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGES...", help="Folders of images, images, or .txt files that list them."),
    ],
    out: Annotated[Path, typer.Option(help="Folder to write.")],
    threshold: Annotated[float, typer.Option(help="Least score of an instance, 0 to 1.")] = 0.3,
    top_k: Annotated[int, typer.Option(help="Largest number of instances of an image.")] = 100,
    tile: Annotated[
        int | None, typer.Option(help="Also predict overlapping tiles with sides of so many pixels.")
    ] = None,
    overlays: Annotated[
        bool, typer.Option("--overlays/--no-overlays", help="Write pictures of the masks over their images.")
    ] = True,
    save: Annotated[
        Any,
        typer.Option(
            parser=_kinds,
            metavar="KINDS",
            help="Also write png (16-bit instance ids), yolo, labelme; several as png,yolo.",
        ),
    ] = "",
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images, or tiles, per batch [8 on a GPU, 1 on a CPU].")
    ] = None,
    device: Annotated[str, typer.Option(help="Device: cpu, cuda, cuda:1, ... or auto.")] = "auto",
    max_megapixels: MaxMegapixels = None,
    resume: Annotated[
        bool, typer.Option("--resume/--restart", help="Resume an interrupted run, or start over.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in --out.")] = False,
) -> None:
    """Find the instances in images with a trained model, and write them in COCO format, with pictures."""
    from sp_fast.data.faults import counted
    from sp_fast.inference.folder import check_out, find_images, predict_folder
    from sp_fast.inference.load import fingerprint, load
    from sp_fast.inference.model import check_options
    from sp_fast.inference.outputs import KINDS
    from sp_fast.progress import RunProgress, clock

    check_options(threshold, top_k, tile)
    find_images(images)  # bad input fails before the slow loading of the model
    check_out(out, images, overwrite)
    console = Console(stderr=True)
    try:
        loaded = load(model, device=device)
    except ImportError as error:
        raise ValueError(error) from error
    if batch_size is not None:
        loaded.batch_size = batch_size
    kinds = [*(["overlays"] if overlays else []), *save]
    try:
        with RunProgress("images", console) as progress:
            summary = predict_folder(
                loaded,
                images,
                out,
                fingerprint=fingerprint(model),
                threshold=threshold,
                top_k=top_k,
                tile=tile,
                kinds=kinds,
                restart=not resume,
                overwrite=overwrite,
                progress=progress,
            )
    except KeyboardInterrupt:
        console.print(f"Interrupted. Run the same command again to resume ({out}).", soft_wrap=True)
        raise typer.Exit(130) from None
    resumed = f" ({summary.resumed} of them from the interrupted run)" if summary.resumed else ""
    typer.echo(
        f"{counted(summary.images, 'image')}{resumed}, {counted(summary.instances, 'instance')} "
        f"({summary.instances / max(summary.images, 1):.1f} per image) in {clock(summary.seconds)}"
    )
    if not summary.instances and summary.highest_score:
        whose = " of the images of this run" if summary.resumed else ""
        typer.echo(
            f"No instances: the highest score{whose} is {summary.highest_score:.4f}; lower --threshold "
            f"(now {threshold:g})"
        )
    typer.echo(f"Predictions: {summary.out}")
    for kind in kinds:
        typer.echo(f"{_WRITTEN[kind]}: {out / KINDS[kind][0]}")
    if len(summary.broken):
        typer.echo(f"Skipped: {summary.broken.report(summary.images + len(summary.broken))}")
