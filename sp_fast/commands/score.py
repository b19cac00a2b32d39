"""`sp-fast score`: how well proposals cover annotated objects."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

EXAMPLES = """
\b
Example:
  sp-fast score masks.json --annotations instances_val.json
"""


def score(
    masks: Annotated[Path, typer.Argument(metavar="MASKS", help="Masks made by `sp-fast propose`.")],
    annotations: Annotated[
        Path, typer.Option(help="Annotations of the images, COCO format.", show_default=False)
    ],
) -> None:
    """Score masks against annotated objects by the best IoU of each object."""
    from sp_fast.proposals.scores import score_proposals

    scores = score_proposals(masks, annotations)
    table = Table("objects", "number", "mean best IoU", "IoU above 0.5")
    for name, coverage in scores.by_size.items():
        if coverage.objects:
            iou, share = f"{coverage.mean_best_iou:.3f}", f"{coverage.above_half:.1%}"
        else:
            iou = share = "-"
        table.add_row(name, str(coverage.objects), iou, share)
    Console().print(table)
    strips = scores.strips
    if scores.masks_per_image:
        table = Table("strips along the border", "number", "share")
        table.add_row("all masks", str(strips.masks), f"{strips.masks_share:.1%}")
        table.add_row("best mask per image", str(strips.best), f"{strips.best_share:.1%}")
        Console().print(table)
    typer.echo(
        f"{scores.images} of {scores.images_annotated} annotated images, "
        f"{scores.masks_per_image:.1f} masks per image"
    )
