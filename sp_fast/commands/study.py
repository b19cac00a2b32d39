"""`sp-fast study`: what each part of the method gives on real images."""

import shlex
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

# A line of \b alone keeps the lines of the paragraph below it as they are.
EXAMPLES = """
\b
Examples:
  The whole study, as long as it takes (about 430 images a second fit half an hour):
    sp-fast study mini-coco DATA --out runs/study
  In parts of 9 minutes; exit status 3 says that there is more to do:
    sp-fast study mini-coco DATA --out runs/study --minutes 9
  Two variants, one seed, ResNet-50:
    sp-fast study mini-coco DATA --out runs/r50 --backbone resnet50 \\
      --variants labels,cosine --seeds 0
  Three seeds on four GPUs; the processes divide the variants:
    for gpu in 0 1 2 3; do
      CUDA_VISIBLE_DEVICES=$gpu sp-fast study mini-coco DATA --out runs/study \\
        --seeds 0,1,2 &
    done; wait
  On a CPU, 80 minutes a seed on one core:
    OMP_NUM_THREADS=1 sp-fast study mini-coco DATA --out runs/cpu --size 160 \\
      --backbone mobilenet_v2_64 --images 9600 --finetune-steps 240
  The way in 15 minutes on a CPU; too short for the effect:
    OMP_NUM_THREADS=1 sp-fast study mini-coco DATA --out runs/quick --quick

DATA has coco_mini/, bsds500/ and weights/, or is what `sp-fast study pack` wrote.
"""
PACK_EXAMPLES = """
\b
Example:
  sp-fast study pack DATA --out mini_coco.pack --size 384
  sp-fast study mini-coco mini_coco.pack --out runs/study --minutes 9
"""
MORE_TO_DO = 3

app = typer.Typer(
    help="Compare ways of pre-training on real images.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("mini-coco", epilog=EXAMPLES)
def mini_coco(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder of the images, or a pack of them.")],
    out: Annotated[Path, typer.Option(help="Folder of everything that is made; it can be moved.")] = Path(
        "runs/study"
    ),
    variants: Annotated[str, typer.Option(help="Ways of pre-training, with commas; all: every one.")] = "all",
    seeds: Annotated[str, typer.Option(help="Seeds of weights and order, with commas.")] = "0",
    backbone: Annotated[
        str, typer.Option(help="mobilenet_v2, mobilenet_v2_64 (for a CPU), resnet50, or a config file.")
    ] = "mobilenet_v2",
    images: Annotated[
        int | None, typer.Option(help="Images of each pre-training [50000].", show_default=False)
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Longer side of the images in pixels [384].", show_default=False)
    ] = None,
    proposal_size: Annotated[
        int | None, typer.Option(help="The same where proposals are made [640].", show_default=False)
    ] = None,
    finetune_steps: Annotated[
        int | None, typer.Option(help="Steps of each fine-tuning [600].", show_default=False)
    ] = None,
    evaluations: Annotated[
        int | None, typer.Option(help="Evaluations of each fine-tuning [2].", show_default=False)
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Stop after about so many minutes; the same command goes on.", show_default=False),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few small images and steps: the way, not the effect.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... or auto.")] = "auto",
    workers: Annotated[int, typer.Option(min=1, help="Threads that read images.")] = 4,
    docs: Annotated[
        Path | None,
        typer.Option(
            help="Page to put the results into; picture and numbers go beside it.", show_default=False
        ),
    ] = None,
) -> None:
    """Pre-train in several ways, fine-tune each on 10 % and on all labels, compare mask AP.

    Stopped or killed, the same command goes on where it was; given several times at once, the calls
    divide the work. Writes results.json, curves.png and results.md.
    """
    try:
        import mmdet  # noqa: F401  (before minutes are spent on what comes first)
    except ModuleNotFoundError as error:
        raise SystemExit(f"sp-fast study needs {error.name}: pip install 'sp_fast[mmdet]'") from None
    import torch

    from sp_fast.commands.propose import _device
    from sp_fast.mmdet_plugin.hooks import NonFiniteLossError
    from sp_fast.study.main import QUICK, QUICK_VARIANTS, StudyOptions, run_study
    from sp_fast.study.variants import VARIANTS, choose_variants

    given = {
        "images": images,
        "size": size,
        "proposal_size": proposal_size,
        "finetune_steps": finetune_steps,
        "evaluations": evaluations,
    }
    chosen = {**(QUICK if quick else {}), **{name: one for name, one in given.items() if one is not None}}
    options = StudyOptions(backbone=backbone, **chosen)
    names = variants.split(",")
    if variants == "all":
        names = list(QUICK_VARIANTS if quick else VARIANTS)
    if minutes is not None and minutes <= 0:
        raise ValueError(f"--minutes: expected a number above 0, got {minutes:g}; leave it out for no limit")
    console = Console()
    # Ended from outside, the step that runs is lost and no more.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        complete = run_study(
            data,
            out,
            options,
            choose_variants(names),
            _numbers(seeds),
            device=torch.device(_device(device)),
            minutes=minutes,
            workers=workers,
            console=console,
            command=shlex.join(["sp-fast", *sys.argv[1:]]),
            docs=docs,
        )
    except NonFiniteLossError as error:
        raise ValueError(str(error)) from None
    if not complete:
        raise typer.Exit(MORE_TO_DO)


@app.command("pack", epilog=PACK_EXAMPLES)
def pack(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Folder of the images.")],
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    size: Annotated[int, typer.Option(help="Longer side of the images in pixels.")] = 384,
    quality: Annotated[int, typer.Option(help="Of the JPEG files, 1 to 95.")] = 92,
    backbone: Annotated[
        str, typer.Option(help="Whose weights to take along; several with commas.")
    ] = "mobilenet_v2",
) -> None:
    """Write resized images, annotations and weights to one small folder, to carry elsewhere."""
    from sp_fast.study.pack import write_pack

    console = Console()
    size_bytes = write_pack(data, out, size, quality, backbone.split(","), console)
    typer.echo(f"{out}: {size_bytes / 2**20:.1f} MiB")


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 0:
        raise ValueError(f"--seeds: expected whole numbers with commas, such as 0,1,2, got {text!r}")
    return numbers
