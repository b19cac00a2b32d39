"""`sp-fast propose`: saliency masks for a folder of images."""

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

# A line with only \b keeps click from re-wrapping the paragraph below it.
EXAMPLES = """
\b
Examples:
  MobileNetV2 with torchvision's weights:
    sp-fast propose photos --weights mobilenet_v2.pth --out masks.json
  ResNet-50 with DenseCL's, as in the authors' code:
    sp-fast propose photos --weights densecl_r50.pth \\
      --preset official --size 1333x800 --out masks.json
  Without weights, for simple scenes:
    sp-fast propose scenes --backbone random --center \\
      --similarity cosine --threshold 0.7 --size none --out masks.json

If interrupted, run the same command again to resume.
"""


class BackboneName(str, Enum):
    """Backbones."""

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
    """Similarity of a seed and a cell."""

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
        BackboneName, typer.Option(help="Backbone; auto: recognised from the weights.")
    ] = BackboneName.auto,
    style: Annotated[
        Style, typer.Option(help="ResNet variant; caffe has BGR input and early strides.")
    ] = Style.pytorch,
    stage: Annotated[int, typer.Option(help="Stage whose features are used, 1 to 4 (strides 4 to 32).")] = 4,
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Accept missing and unknown weights, and list them.")
    ] = False,
    size: Annotated[
        str, typer.Option(help="Longer side of the images in pixels, LONGERxSHORTER limits, or none.")
    ] = "640",
    preset: Annotated[Preset, typer.Option(help="Defaults of the options below.")] = Preset.paper,
    grid: Annotated[
        str | None, typer.Option(help="Grid of seeds, such as 10x10 or 10x10,5x5.", show_default=False)
    ] = None,
    scales: Annotated[
        str | None,
        typer.Option(help="Seeds by resizing the features, such as 1,0.5,0.25, instead.", show_default=False),
    ] = None,
    center: Annotated[
        bool | None,
        typer.Option("--center/--no-center", help="Subtract the mean feature per image.", show_default=False),
    ] = None,
    similarity: Annotated[
        Similarity | None, typer.Option(help="Similarity of a seed and a cell.", show_default=False)
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Least saliency inside a mask, 0 to 1.", show_default=False)
    ] = None,
    nms: Annotated[Nms | None, typer.Option(help="Non-maximum suppression.", show_default=False)] = None,
    iou_threshold: Annotated[
        float | None, typer.Option(help="Largest IoU of two masks after mask NMS.", show_default=False)
    ] = None,
    sigma: Annotated[
        float | None, typer.Option(help="Sharpness of the decay of matrix NMS.", show_default=False)
    ] = None,
    min_area: Annotated[
        int | None, typer.Option(help="Smallest area of a mask, in feature cells.", show_default=False)
    ] = None,
    max_masks: Annotated[
        int | None, typer.Option(help="Largest number of masks per image.", show_default=False)
    ] = None,
    min_score: Annotated[
        float | None, typer.Option(help="Least score of a mask, after NMS.", show_default=False)
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Images per batch [8 on a GPU, 1 on a CPU].", show_default=False),
    ] = None,
    device: Annotated[str, typer.Option(help="Device: cpu, cuda, cuda:1, ... or auto.")] = "auto",
    workers: Annotated[int, typer.Option(min=1, help="Threads that read images and encode masks.")] = 4,
    resume: Annotated[
        bool, typer.Option("--resume/--restart", help="Resume an interrupted run, or start over.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output file.")] = False,
) -> None:
    """Make saliency masks for a folder of images, as pseudo labels for pre-training."""
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
            "the backbone needs weights: pass the path of a checkpoint, or --backbone random",
            param_hint="--weights",
        )

    from sp_fast.data.images import list_images
    from sp_fast.progress import RunProgress, clock
    from sp_fast.proposals.backbones import backbone_of, build_backbone
    from sp_fast.proposals.proposer import SaliencyProposer
    from sp_fast.proposals.run import propose_folder

    list_images(images)  # bad folders fail before the slow reading of weights
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
        console.print(f"Interrupted. Run the same command again to resume ({out}.partial).", soft_wrap=True)
        raise typer.Exit(130) from None
    resumed = f" ({summary.resumed} of them from the interrupted run)" if summary.resumed else ""
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
