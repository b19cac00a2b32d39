"""`sp-fast region-boxes`: boxes of selective search as pseudo masks, like DETReg's regions."""

from pathlib import Path
from typing import Annotated

import typer

EXAMPLES = """
\b
Example:
  sp-fast region-boxes photos --workers 8 --out regions.json
  sp-fast train CONFIG --images photos --annotations regions.json \\
    --cfg-options model.source=import
"""


def region_boxes(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder of images; sub-folders too.")],
    out: Annotated[Path, typer.Option(help="JSON file to write, COCO format.", show_default=False)],
    count: Annotated[int, typer.Option(min=1, help="Largest number of boxes per image.")] = 30,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes.")] = 2,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output file.")] = False,
) -> None:
    """Make boxes by selective search for a folder of images, like DETReg, for pre-training.

    Needs the package opencv-contrib-python-headless in place of opencv-python.
    """
    from sp_fast.progress import RunProgress
    from sp_fast.proposals.region_boxes import write_region_boxes

    with RunProgress("images") as progress:
        found, boxes, broken = write_region_boxes(
            images, out, count=count, seed=seed, workers=workers, overwrite=overwrite, progress=progress
        )
    typer.echo(f"{found} images, {boxes} boxes: {out}")
    if len(broken):
        typer.echo(f"Skipped: {broken.report(found + len(broken))}")
