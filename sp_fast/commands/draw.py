"""`sp-fast draw`: masks over their images, as one picture."""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """
\b
Examples:
  Proposals, as in the paper's Figure 5 (a):
    sp-fast draw masks.json --images photos --out proposals.png
  Annotated objects and predictions below each other:
    sp-fast draw val.json found/predictions.json --images val --out found.png
  Results in COCO's format, of two images:
    sp-fast draw results.json --annotations val.json --images val \\
      --names a.jpg,b.jpg --out results.png
"""


def draw(
    masks: Annotated[
        list[Path],
        typer.Argument(
            metavar="MASKS.json...",
            help="Files of proposals, annotations, predictions or results with masks.",
        ),
    ],
    images: Annotated[Path, typer.Option(help="Folder of the images.", show_default=False)],
    out: Annotated[Path, typer.Option(help="PNG file to write.", show_default=False)],
    annotations: Annotated[
        Path | None, typer.Option(help="COCO-format file of the images, for lists of results.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=200, help="Number of images, evenly spread.")] = 12,
    names: Annotated[
        str | None, typer.Option(help="File names of the images to draw instead, comma-separated.")
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option(help="Lowest score of a mask [0.3; none for masks of `propose`]."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing picture.")] = False,
) -> None:
    """Draw masks over images; several files give rows below each other, for the same images."""
    check_picture(out, overwrite)
    if not images.is_dir():
        raise FileNotFoundError(f"--images: expected the folder of the images, got {images}")
    from sp_fast.data.faults import counted
    from sp_fast.evaluation.mask_grid import MIN_SCORE, choose_images, mask_grid, read_masks
    from sp_fast.evaluation.sources import check_images
    from sp_fast.plots import save_png

    alike = len({path.name for path in masks}) < len(masks)
    files = [
        read_masks(path, annotations, label=str(path) if alike else None, min_score=min_score)
        for path in masks
    ]
    chosen = choose_images(files, count, names.split(",") if names else None)
    check_images(chosen, images, "to draw")
    save_png(lambda: mask_grid(files, images, chosen), out)
    drawn = sum(len(one.masks.get(name, ())) for one in files for name in chosen)
    typer.echo(f"{counted(len(chosen), 'image')}, {counted(drawn, 'mask')}: {out}")
    below = f"below {MIN_SCORE if min_score is None else min_score:g}"
    for one in files:
        if one.left_out and not one.masks:
            typer.echo(f"{one.label}: no masks drawn, since all scores are {below}; --min-score 0 draws all.")
        elif one.left_out:
            left_out = counted(one.left_out, "mask")
            typer.echo(f"{one.label}: left out {left_out} with scores {below} (--min-score).")


def check_picture(out: Path, overwrite: bool) -> None:
    """Raise an error for a picture that may not or cannot be written."""
    from importlib.util import find_spec

    if out.suffix.lower() != ".png":
        raise ValueError(f"--out: expected a name that ends with .png, got {out}")
    if out.is_dir():
        raise IsADirectoryError(f"--out: expected a file, got the folder {out}")
    if out.exists() and not overwrite:
        raise FileExistsError(f"--out: {out} exists; add --overwrite to replace it")
    if find_spec("matplotlib") is None:
        raise ValueError("--out: pictures need matplotlib: pip install 'sp_fast[mmdet]'")
