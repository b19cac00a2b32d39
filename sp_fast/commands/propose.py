"""`sp-fast propose`: saliency masks for a folder of images."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from sp_fast.commands.max_megapixels import MaxMegapixels
from sp_fast.freed_memory import address_space_is_small

if TYPE_CHECKING:
    from sp_fast.proposals.run import ProposeSummary

# A line with only \b keeps click from re-wrapping the paragraph below it.
EXAMPLES = """
\b
Examples:
  MobileNetV2 with torchvision's weights:
    sp-fast propose photos --weights mobilenet_v2.pth --out masks.json
  ResNet-50 with DenseCL's, as in the authors' code:
    sp-fast propose photos --weights densecl_r50.pth \\
      --preset official --size 1333x800 --out masks.json
  Small objects too, with masks ranked by how much they look like objects:
    sp-fast propose photos --weights mobilenet_v2.pth \\
      --preset multiscale --out masks.json
  Many small things of one kind, such as cells, without weights:
    sp-fast propose cells --backbone random --padding replicate \\
      --preset multiscale --size 480 --max-masks 100 --out masks.json
  Without weights, for simple scenes:
    sp-fast propose scenes --backbone random --center \\
      --similarity cosine --threshold 0.7 --size none --out masks.json
  On 8 GPUs, or on several machines with torchrun's --nnodes:
    torchrun --nproc-per-node 8 -m sp_fast propose photos \\
      --weights mobilenet_v2.pth --out masks.json
  As jobs of a batch queue, here the third of eight:
    sp-fast propose photos --weights mobilenet_v2.pth \\
      --out masks.json --shard 3/8
  The same under Slurm's srun, whose variables are not read automatically:
    ... --shard $((SLURM_PROCID+1))/$SLURM_NTASKS

If interrupted, run the same command again to resume.
"""


_LARGEST = 2**15  # a side of that many pixels, or cells, takes all memory


def _device(name: str) -> str:
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise typer.BadParameter(f"{name} cannot be used here ({str(error).splitlines()[0]})") from None
    return name


@contextmanager
def _without_triton() -> Iterator[None]:
    """Keeps torch's compiler, which torchvision imports, from loading Triton, 190 MB that no CPU needs."""
    loaded = "triton" in sys.modules
    if not loaded:
        sys.modules["triton"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        if not loaded:
            del sys.modules["triton"]


def _numbers(text: str, separator: str, kind: type, expected: str, lengths: Sequence[int] = ()) -> Any:
    try:
        numbers = [kind(number) for number in text.split(separator)]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) <= 0 or (lengths and len(numbers) not in lengths):
        raise typer.BadParameter(f"expected {expected}, got {text!r}")
    if kind is int and max(numbers) > _LARGEST:
        raise typer.BadParameter(f"expected numbers of at most {_LARGEST}, got {text!r}")
    return numbers


def _size(text: str) -> Any:
    if text == "none":
        return "none"
    if "," in text:
        return _numbers(text, ",", int, "sizes such as 640,1280,1920")
    sides = _numbers(text, "x", int, "640, 1333x800 or none", (1, 2))
    return sides[0] if len(sides) == 1 else (sides[0], sides[1])


def _grid(text: str) -> Any:
    return [_numbers(pair, "x", int, "10x10, or several as 10x10,5x5", (2,)) for pair in text.split(",")]


def _scales(text: str) -> Any:
    return _numbers(text, ",", float, "factors such as 1,0.5,0.25")


def _thresholds(text: str) -> Any:
    numbers = _numbers(text, ",", float, "a threshold, or several as 0.3,0.5")
    return numbers[0] if len(numbers) == 1 else numbers


def _shard(text: str) -> Any:
    number, total = _numbers(text, "/", int, "a shard and the number of shards, such as 3/8", (2,))
    if number > total:
        raise typer.BadParameter(f"expected a shard from 1/{total} to {total}/{total}, got {text!r}")
    return number, total


def propose(
    context: typer.Context,
    images: Annotated[Path, typer.Argument(metavar="IMAGES", help="Folder of images; sub-folders too.")],
    out: Annotated[Path, typer.Option(help="JSON file to write, COCO format; the seeds go beside it.")],
    weights: Annotated[
        Path | None, typer.Option(help="Backbone checkpoint of torchvision, DenseCL, MoCo-v2, SwAV or mm*.")
    ] = None,
    backbone: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="resnet18, resnet34, resnet50, resnet101, mobilenet_v2, random, or timm:NAME for a model of "
            "timm; auto: recognised from the weights.",
        ),
    ] = "auto",
    style: Annotated[
        Literal["pytorch", "caffe"],
        typer.Option(help="ResNet variant; caffe has BGR input and early strides."),
    ] = "pytorch",
    stage: Annotated[int, typer.Option(help="Stage whose features are used, 1 to 4 (strides 4 to 32).")] = 4,
    padding: Annotated[
        Literal["zeros", "replicate"],
        typer.Option(help="Padding of all convolutions; replicate repeats the values at the border."),
    ] = "zeros",
    allow_partial: Annotated[
        bool, typer.Option("--allow-partial", help="Accept missing and unknown weights, and list them.")
    ] = False,
    size: Annotated[
        Any,
        typer.Option(
            parser=_size,
            metavar="SIZE",
            help="Longer side of the images in pixels, LONGERxSHORTER limits, or none [640]; with --ranking "
            "objectness, one or several longer sides, such as 640,1280,1920.",
        ),
    ] = None,
    preset: Annotated[
        Literal["paper", "official", "multiscale"], typer.Option(help="Defaults of the options below.")
    ] = "paper",
    grid: Annotated[
        Any, typer.Option(parser=_grid, metavar="GRID", help="Grid of seeds, such as 10x10 or 10x10,5x5.")
    ] = None,
    scales: Annotated[
        Any,
        typer.Option(
            parser=_scales,
            metavar="FACTORS",
            help="Seeds by resizing the features, such as 1,0.5,0.25, instead.",
        ),
    ] = None,
    center: Annotated[
        bool | None, typer.Option("--center/--no-center", help="Subtract the mean feature per image.")
    ] = None,
    similarity: Annotated[
        Literal["dot", "cosine"] | None, typer.Option(help="Similarity of a seed and a cell.")
    ] = None,
    threshold: Annotated[
        Any,
        typer.Option(
            parser=_thresholds,
            metavar="NUMBERS",
            help="Lowest saliency inside a mask, 0 to 1; with --ranking objectness also several, as 0.3,0.5.",
        ),
    ] = None,
    ranking: Annotated[
        Literal["saliency", "objectness"] | None,
        typer.Option(
            help="Rank masks by mean saliency; or masks and their connected parts by stability and contrast."
        ),
    ] = None,
    nms: Annotated[Literal["mask", "matrix"] | None, typer.Option(help="Non-maximum suppression.")] = None,
    iou_threshold: Annotated[
        float | None, typer.Option(help="Largest IoU of two masks after mask NMS.")
    ] = None,
    sigma: Annotated[float | None, typer.Option(help="Sharpness of the decay of matrix NMS.")] = None,
    min_area: Annotated[int | None, typer.Option(help="Smallest area of a mask, in feature cells.")] = None,
    max_masks: Annotated[int | None, typer.Option(help="Largest number of masks per image.")] = None,
    min_score: Annotated[float | None, typer.Option(help="Lowest score of a mask, after NMS.")] = None,
    refine: Annotated[
        Literal["none", "segments"] | None,
        typer.Option(help="segments: build masks from whole segments of even colour, ending at image edges."),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images per batch [8 on a GPU, 1 on a CPU].")
    ] = None,
    device: Annotated[
        str, typer.Option(parser=_device, metavar="DEVICE", help="Device: cpu, cuda, cuda:1, ... or auto.")
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="Threads that read images and encode masks [4; 1 if ulimit -v is below 8 GB]."
        ),
    ] = None,
    ignore_exif: Annotated[
        bool, typer.Option("--ignore-exif", help="Read stored pixels: ignore the EXIF orientation.")
    ] = False,
    max_megapixels: MaxMegapixels = None,
    shard: Annotated[
        Any,
        typer.Option(
            parser=_shard,
            metavar="K/N",
            help="Process only part K of N of the images; the last part to finish writes the output.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume/--restart", help="Resume an interrupted run, or start over.")
    ] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing output file.")] = False,
) -> None:
    """Make saliency masks for a folder of images, as pseudo labels for pre-training."""
    if weights is None and backbone != "random":
        from sp_fast.weights.published import where_to_find

        raise typer.BadParameter(
            "the backbone needs weights: pass the path of a checkpoint, or --backbone random. Published "
            f"weights:\n{where_to_find()}",
            param_hint="--weights",
        )

    small = address_space_is_small()
    with _without_triton() if small and device == "cpu" else nullcontext():
        import torchvision  # noqa: F401

    from sp_fast.data.images import list_images
    from sp_fast.data.prepared import check_outputs
    from sp_fast.progress import RunProgress
    from sp_fast.proposals.backbones import backbone_of, build_backbone
    from sp_fast.proposals.presets import OPTION_NAMES, resolve_options
    from sp_fast.proposals.proposer import SaliencyProposer
    from sp_fast.proposals.ranks import RankProgress, Ranks
    from sp_fast.proposals.run import propose_folder
    from sp_fast.proposals.store import check_json

    # Bad options, outputs and folders fail before the slow reading of weights.
    changed = {name: context.params[name] for name in OPTION_NAMES if context.params.get(name) is not None}
    several = resolve_options(preset, **changed).ranking == "objectness"
    if isinstance(size, tuple if several else list):
        expected = "longer sides such as 640,1280" if several else "one size without --ranking objectness"
        raise typer.BadParameter(f"expected {expected}, got {size}", param_hint="--size")
    if several and size is not None:
        changed["sizes"] = None if size == "none" else [size] if isinstance(size, int) else size
    if several or size == "none":
        size = None
    elif size is None:
        size = 640
    check_outputs([out], overwrite=overwrite)
    check_json(out)
    list_images(images)
    ranks = Ranks() if Ranks.started() else None
    if ranks is not None:
        if shard is not None:
            raise typer.BadParameter(
                "expected no shard under torchrun, which gives each process one", param_hint="--shard"
            )
        shard = (ranks.rank + 1, ranks.world)
        device = _device(f"cuda:{ranks.local_rank}") if device == "cuda" else device
    console = Console(stderr=True, quiet=ranks is not None and ranks.rank > 0)
    name = backbone_of(weights) if backbone == "auto" and weights is not None else backbone
    network = build_backbone(
        name, style=style, stage=stage, padding=padding, weights=weights, allow_partial=allow_partial
    )
    if network.weights_report is not None:
        console.print(
            f"Weights of {name}: {network.weights_report}", highlight=False, soft_wrap=True, markup=False
        )
    proposer = SaliencyProposer(network, preset=preset, **changed)
    try:
        with RunProgress("images", console) as shown:
            progress = RankProgress(ranks, shown) if ranks is not None else shown
            summary = propose_folder(
                images,
                out,
                proposer,
                size=size,
                batch_size=batch_size,
                device=device,
                workers=workers or (1 if small else 4),
                exif="ignore" if ignore_exif else "apply",
                shard=shard or (1, 1),
                restart=not resume,
                overwrite=overwrite,
                progress=progress,
            )
            if isinstance(progress, RankProgress):
                progress.finish(summary.merged)
    except KeyboardInterrupt:
        console.print(f"Interrupted. Run the same command again to resume ({out}.partial).", soft_wrap=True)
        raise typer.Exit(130) from None
    if ranks is None or summary.merged:
        typer.echo(_report(summary, shard))


def _report(summary: "ProposeSummary", shard: tuple[int, int] | None) -> str:
    from sp_fast.data.faults import counted
    from sp_fast.progress import clock

    resumed = f" ({summary.resumed} of them from the interrupted run)" if summary.resumed else ""
    if shard is not None and summary.merged:
        resumed = ""  # counts this shard's images only
    lines = [
        f"{counted(summary.images, 'image')}{resumed}, {counted(summary.masks, 'mask')} "
        f"({summary.masks / max(summary.images, 1):.1f} per image) in {clock(summary.seconds)}"
    ]
    if shard is not None and not summary.merged:
        lines[0] = f"Shard {shard[0]}/{shard[1]}: {lines[0]}"
        lines.append(_still_missing(summary, shard[1]))
    else:
        lines += [f"Masks: {summary.out}", f"Seeds: {summary.seeds}"]
    if len(summary.broken):
        lines.append(f"Skipped: {summary.broken.report(summary.images + len(summary.broken))}")
    return "\n".join(lines)


def _still_missing(summary: "ProposeSummary", total: int) -> str:
    if not summary.missing:
        return f"Another shard has written {summary.out}."
    several = "s" if len(summary.missing) > 1 else ""
    numbers = ", ".join(map(str, summary.missing))
    return (
        f"{len(summary.missing)} of {total} shards missing: shard{several} {numbers}. The last to finish "
        f"writes {summary.out}."
    )
