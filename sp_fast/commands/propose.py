"""`sp-fast propose`: masks of a folder of images."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

# A line of \b alone keeps the lines of the paragraph below it as they are.
EXAMPLES = """
\b
Examples:
  MobileNetV2 with torchvision's weights:
    sp-fast propose photos --weights mobilenet_v2.pth --out masks.json
  ResNet-50 with DenseCL's, as in the authors' code:
    sp-fast propose photos --weights densecl_r50.pth \\
      --preset official --size 1333x800 --out masks.json
  No weights at all, for simple scenes:
    sp-fast propose scenes --backbone random --center \\
      --similarity cosine --threshold 0.7 --size none --out masks.json

An interrupted run goes on where it was when the same command is given again.
"""


class BackboneName(str, Enum):
    """Known backbones."""

    auto = "auto"
    resnet18 = "resnet18"
    resnet34 = "resnet34"
    resnet50 = "resnet50"
    resnet101 = "resnet101"
    mobilenet_v2 = "mobilenet_v2"
    random = "random"


class Style(str, Enum):
    """Variants of the ResNets."""

    pytorch = "pytorch"
    caffe = "caffe"


class Preset(str, Enum):
    """Presets of the proposals."""

    paper = "paper"
    official = "official"


class Similarity(str, Enum):
    """Similarities of seeds and cells."""

    dot = "dot"
    cosine = "cosine"


class Nms(str, Enum):
    """Kinds of non-maximum suppression."""

    mask = "mask"
    matrix = "matrix"


def propose(
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder of images; sub-folders too.")],
    out: Annotated[
        Path,
        typer.Option(help="JSON file to write, COCO format; the seeds go beside it.", show_default=False),
    ],
    weights: Annotated[
        Path | None,
        typer.Option(
            help="Backbone checkpoint of torchvision, DenseCL, MoCo-v2, SwAV or mm*.", show_default=False
        ),
    ] = None,
    backbone: Annotated[
        BackboneName, typer.Option(help="Network of the features; auto: the one that the weights are of.")
    ] = BackboneName.auto,
    style: Annotated[
        Style, typer.Option(help="Kind of ResNet; caffe has BGR input and early strides.")
    ] = Style.pytorch,
    stage: Annotated[int, typer.Option(help="Stage of the features, 1 to 4 (strides 4 to 32).")] = 4,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Take weights that lack some layers; says which.")
    ] = False,
    size: Annotated[
        str, typer.Option(help="Longer side of the images in pixels, LONGERxSHORTER limits, or none.")
    ] = "640",
    preset: Annotated[Preset, typer.Option(help="Options below that are not given.")] = Preset.paper,
    grid: Annotated[
        str | None, typer.Option(help="Grid of seeds, as 10x10; several with commas.", show_default=False)
    ] = None,
    scales: Annotated[
        str | None,
        typer.Option(help="Or seeds by resizing the features, as 1,0.5,0.25.", show_default=False),
    ] = None,
    center: Annotated[
        bool | None,
        typer.Option("--center/--no-center", help="Subtract the mean feature.", show_default=False),
    ] = None,
    similarity: Annotated[
        Similarity | None, typer.Option(help="Of a seed with each cell.", show_default=False)
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Least saliency inside a mask, 0 to 1.", show_default=False)
    ] = None,
    nms: Annotated[Nms | None, typer.Option(help="Non-maximum suppression.", show_default=False)] = None,
    iou_threshold: Annotated[
        float | None, typer.Option(help="Of mask NMS: largest IoU of two masks.", show_default=False)
    ] = None,
    sigma: Annotated[
        float | None, typer.Option(help="Of matrix NMS: sharpness of the decay.", show_default=False)
    ] = None,
    min_area: Annotated[
        int | None, typer.Option(help="Smallest mask, in cells of the features.", show_default=False)
    ] = None,
    max_masks: Annotated[
        int | None, typer.Option(help="Masks per image at most.", show_default=False)
    ] = None,
    min_score: Annotated[
        float | None, typer.Option(help="Least score of a mask, after NMS.", show_default=False)
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images at a time; default 8 on a GPU, 1 on a CPU.", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ... or auto.")] = "auto",
    workers: Annotated[int, typer.Option(min=1, help="Threads that read images and encode masks.")] = 4,
    resume: Annotated[
        bool, typer.Option("--resume/--restart", help="Go on with an interrupted run, or begin anew.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output file.")] = False,
) -> None:
    """Make saliency masks of a folder of images, for pre-training."""
    console = Console(stderr=True)
    given = {
        "grid": _grid(grid),
        "scales": _scales(scales),
        "center": center,
        "similarity": similarity.value if similarity else None,
        "threshold": threshold,
        "nms": nms.value if nms else None,
        "iou_threshold": iou_threshold,
        "sigma": sigma,
        "min_area": min_area,
        "max_masks": max_masks,
        "min_score": min_score,
    }
    options = {name: value for name, value in given.items() if value is not None}
    sides = _sides(size)
    if weights is None and backbone is not BackboneName.random:
        raise typer.BadParameter(
            "the features need weights: pass the checkpoint's path (or --backbone random)",
            param_hint="--weights",
        )

    from sp_fast.data.images import list_images
    from sp_fast.progress import RunProgress, clock
    from sp_fast.proposals.backbones import backbone_of, build_backbone
    from sp_fast.proposals.proposer import SaliencyProposer
    from sp_fast.proposals.run import propose_folder

    list_images(images)  # before the weights are read, which takes longer
    name = backbone.value if weights is None or backbone is not BackboneName.auto else backbone_of(weights)
    network = build_backbone(
        name, style=style.value, stage=stage, weights=weights, allow_partial=allow_partial
    )
    if network.weights_report is not None:
        console.print(
            f"Weights of {name}: {network.weights_report}", highlight=False, soft_wrap=True, markup=False
        )
    proposer = SaliencyProposer(network, preset=preset.value, **options)
    try:
        with RunProgress("images", console) as progress:
            summary = propose_folder(
                images,
                out,
                proposer,
                size=sides,
                batch_size=batch_size,
                device=_device(device),
                workers=workers,
                restart=not resume,
                overwrite=overwrite,
                progress=progress,
            )
    except KeyboardInterrupt:
        console.print(f"Interrupted. The same command goes on where it was ({out}.partial).", soft_wrap=True)
        raise typer.Exit(130) from None
    resumed = f" ({summary.resumed} of them by the interrupted run)" if summary.resumed else ""
    lines = [
        f"{summary.images} images{resumed}, {summary.masks} masks "
        f"({summary.masks / max(summary.images, 1):.1f} per image) in {clock(summary.seconds)}",
        f"Masks: {summary.out}",
        f"Seeds: {summary.seeds}",
    ]
    if len(summary.broken):
        lines.append(f"Skipped: {summary.broken.report(summary.images + len(summary.broken))}")
    for line in lines:
        typer.echo(line)


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise typer.BadParameter(f"{name} cannot be used here ({reason})", param_hint="--device") from None
    return name


def _sides(text: str) -> Any:
    if text == "none":
        return None
    try:
        sides = [int(side) for side in text.split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise typer.BadParameter(f"expected 640, 1333x800 or none, got {text!r}", param_hint="--size")
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _grid(text: str | None) -> Any:
    if text is None:
        return None
    try:
        pairs = [tuple(int(side) for side in pair.split("x")) for pair in text.split(",")]
    except ValueError:
        pairs = []
    if not pairs or any(len(pair) != 2 or min(pair) < 1 for pair in pairs):
        raise typer.BadParameter(
            f"expected 10x10, or several as 10x10,5x5, got {text!r}", param_hint="--grid"
        )
    return pairs


def _scales(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return [float(scale) for scale in text.split(",")]
    except ValueError:
        raise typer.BadParameter(
            f"expected factors such as 1,0.5,0.25, got {text!r}", param_hint="--scales"
        ) from None
