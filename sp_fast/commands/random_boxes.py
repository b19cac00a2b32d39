"""`sp-fast random-boxes`: random boxes as pseudo masks, a baseline for saliency masks."""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """
\b
Example:
  sp-fast random-boxes photos --out random.json
  sp-fast train CONFIG --images photos --annotations random.json \\
    --cfg-options model.source=import
"""


def random_boxes(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder of images; sub-folders too.")],
    out: Annotated[Path, typer.Option(help="JSON file to write, COCO format.", show_default=False)],
    count: Annotated[int, typer.Option(min=1, help="Boxes per image.")] = 20,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output file.")] = False,
) -> None:
    """Make random boxes for a folder of images, as pseudo masks for pre-training."""
    from sp_fast.proposals.random_boxes import write_random_boxes

    found, broken = write_random_boxes(images, out, count=count, seed=seed, overwrite=overwrite)
    typer.echo(f"{found} images, {found * count} boxes: {out}")
    if len(broken):
        typer.echo(f"Skipped: {broken.report(found + len(broken))}")
