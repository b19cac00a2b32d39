"""`sp-fast kernels`: mean masks of the kernels or queries of trained models."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sp_fast.commands.draw import check_picture

EXAMPLES = """
\b
Example, the paper's Figure 6 for two models:
  sp-fast kernels runs/scratch/latest.pth runs/sp/latest.pth \\
    --images val2017 --out figure6.png
"""


def kernels(
    models: Annotated[
        list[Path],
        typer.Argument(metavar="MODEL...", help="Folders of runs, or checkpoints, of K-Net or Mask2Former."),
    ],
    images: Annotated[Path, typer.Option(help="Folder of images; sub-folders too.", show_default=False)],
    out: Annotated[Path, typer.Option(help="PNG file to write.", show_default=False)],
    limit: Annotated[
        int | None, typer.Option(min=1, help="Number of images, evenly spread [all].", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(help="Device: cpu, cuda, cuda:1, ... or auto.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing picture.")] = False,
) -> None:
    """Draw the masks of each kernel or query after the last stage, averaged over the images of a folder.

    Masks are resized to 200 x 200; all models share one colour scale. An interrupted run starts over.
    """
    check_picture(out, overwrite)
    from sp_fast.data.images import list_images, spread
    from sp_fast.evaluation.kernel_maps import kernel_figure, mean_kernel_maps
    from sp_fast.inference.load import load, model_file
    from sp_fast.plots import save_png
    from sp_fast.progress import RunProgress

    paths = list_images(images)
    paths = spread(paths, limit or len(paths))
    for model in models:
        model_file(model)  # a missing file fails before the slow loading of the first model
    console = Console(stderr=True)
    maps = {}
    for model in models:
        try:
            loaded = load(model, device=device)
        except ImportError as error:
            raise ValueError(error) from error
        with RunProgress("images", console) as progress:
            maps[str(model)] = mean_kernel_maps(loaded, paths, progress=progress)
    save_png(lambda: kernel_figure(maps), out)
    typer.echo(f"{len(models)} models, {len(paths)} images: {out}")
