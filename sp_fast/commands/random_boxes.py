"""`sp-fast random-boxes`: random boxes as pseudo masks, a baseline for saliency masks."""

from pathlib import Path
from typing import Annotated, Literal

import typer

EXAMPLES = """
\b
Examples:
  sp-fast random-boxes photos --out random.json
  sp-fast train CONFIG --images photos --annotations random.json \\
    --cfg-options model.source=import
  UP-DETR's random query patches:
    sp-fast random-boxes photos --kind up-detr --out patches.json
"""


def random_boxes(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder of images; sub-folders too.")],
    out: Annotated[Path, typer.Option(help="JSON file to write, COCO format.", show_default=False)],
    kind: Annotated[
        Literal["uniform", "up-detr"],
        typer.Option(help="Two uniformly random corners, or UP-DETR's rule: uniform sides, then a corner."),
    ] = "uniform",
    count: Annotated[
        int | None, typer.Option(min=1, help="Boxes per image [20, or 10 for up-detr].", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output file.")] = False,
) -> None:
    """Make random boxes for a folder of images, as pseudo masks for pre-training."""
    from sp_fast.proposals.random_boxes import KINDS, write_random_boxes

    count = count or KINDS[kind][1]
    found, broken = write_random_boxes(images, out, kind=kind, count=count, seed=seed, overwrite=overwrite)
    typer.echo(f"{found} images, {found * count} boxes: {out}")
    if len(broken):
        typer.echo(f"Skipped: {broken.report(found + len(broken))}")
