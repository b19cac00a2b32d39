"""`sp-fast fit`: from folders of images and a few labels to a model and a page about it."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sp_fast.commands.experiment import run_and_report, seed_numbers
from sp_fast.files import sha256, write_json

EXAMPLES = """
\b
Examples:
  A few labelled images among many:
    sp-fast fit photos --labels labels.json --weights mobilenet_v2.pth \\
      --out runs/fit
  Labelled and validation images in other folders; does pre-training help?
    sp-fast fit photos more_photos --labels train.json --label-images train \\
      --val val.json --val-images val --weights mobilenet_v2.pth \\
      --compare --seeds 0,1,2 --out runs/fit

If it was stopped or killed, run the same command again, without --overwrite, to continue.
"""
STORED = "settings.json"
DATA = "data"
# What a fit writes, and what --overwrite removes.
WRITTEN = (
    *(STORED, DATA, "runs", "model.pth", "lock", "experiment.json", "results.json", "times.json"),
    *("report.html", "report.md", "curves.png"),
)


def fit(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGES...", help="Folders of images; sub-folders too.")
    ],
    labels: Annotated[
        Path, typer.Option(help="Labels of some images: COCO, YOLO, LabelMe, VOC.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="Folder for all output.", show_default=False)],
    label_images: Annotated[Path | None, typer.Option(help="Folder of the labelled images [IMAGES].")] = None,
    val: Annotated[
        Path | None, typer.Option(help="Labels to validate on [a fifth of the labelled images].")
    ] = None,
    val_images: Annotated[
        Path | None, typer.Option(help="Folder of the images of --val [that of the labelled images].")
    ] = None,
    # Without it, the error tells where to download some.
    weights: Annotated[
        Path | None, typer.Option(help="Published weights of the backbone.  [required]")
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Also train without pre-training.")] = False,
    seeds: Annotated[str, typer.Option(help="Random seeds, comma-separated.")] = "0",
    model: Annotated[str | None, typer.Option(help="Model [by weights and device].")] = None,
    size: Annotated[
        int | None, typer.Option(min=64, help="Longer side of the images in pixels [by the objects' size].")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Images per step [by the device].")] = None,
    pretrain_steps: Annotated[int | None, typer.Option(min=1, help="Steps of pre-training.")] = None,
    finetune_steps: Annotated[int | None, typer.Option(min=1, help="Steps of fine-tuning.")] = None,
    kernels: Annotated[
        int | None, typer.Option(min=1, help="Most objects that the model finds [by the labels].")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Choose the steps so that the command takes about this many minutes.")
    ] = None,
    prompts: Annotated[
        bool | None,
        typer.Option("--prompts/--no-prompts", help="Pre-train with saliency prompts on the kernels [yes]."),
    ] = None,
    class_agnostic: Annotated[
        bool, typer.Option("--class-agnostic", help="Take all classes as one.")
    ] = False,
    amp: Annotated[bool | None, typer.Option("--amp/--no-amp", help="Train in bfloat16 [on a GPU].")] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="Where to train [a GPU if there is one].")
    ] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the fit in --out.")] = False,
) -> None:
    """Pre-train on images, fine-tune on a few labels and evaluate; writes a model and a page about it.

    Settings are chosen from the data and the device, and printed with the reason. With --compare, the page
    tells whether pre-training helps on these images.
    """
    began = time.monotonic()
    numbers = seed_numbers(seeds)
    if minutes is not None and minutes <= 0:
        raise ValueError(f"--minutes: expected a number above 0, got {minutes:g}")
    gpu = _use(device)
    if amp and not gpu:
        raise ValueError("--amp: expected a GPU, but the device is a CPU; leave it out")
    given = {
        "model": model,
        "size": size,
        "batch_size": batch_size,
        "pretrain_steps": pretrain_steps,
        "finetune_steps": finetune_steps,
        "kernels": kernels,
        "amp": amp,
        "prompts": None if prompts is None else "cosine" if prompts else "none",
    }
    request = {
        "images": [_absolute(path) for path in images],
        "labels": _absolute(labels),
        "label_images": _absolute(label_images),
        "val": _absolute(val),
        "val_images": _absolute(val_images),
        "contents of labels": _contents(labels, out),
        "contents of val": _contents(val, out),
        "weights": _absolute(_needed(weights)),
        "class_agnostic": class_agnostic,
        "minutes": minutes,
        "settings": {name: value for name, value in given.items() if value is not None},
    }
    console = Console()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a half-made folder is removed
    try:
        make = functools.partial(_new, out, request, gpu, numbers, compare, console, began)
        arguments = _prepared(out, request, overwrite, gpu, make)
        _print_settings(arguments, console)
        from sp_fast.experiments.fit import PRETRAINED, write_model  # takes seconds

        compared = compare or _compared(out, arguments)
    except (KeyboardInterrupt, SystemExit) as stopped:
        console.print("Interrupted. Run the same command again to continue.")
        raise typer.Exit(getattr(stopped, "code", 130)) from None
    except RuntimeError as error:
        console.print(str(error), markup=False, highlight=False)
        raise typer.Exit(1) from None
    command = shlex.join(["sp-fast", *(word for word in sys.argv[1:] if word != "--overwrite")])
    command += " --compare" if compared and not compare else ""
    arguments |= {"compare": compared, "command": command}
    rows = None if compare else [PRETRAINED]
    run_and_report("fit", out, arguments, rows=rows, seeds=numbers, finish=write_model)
    _print_use(out, compared, console)


def _use(device: str) -> bool:
    """Whether trainings run on a GPU; hides the GPUs from them if not."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device: expected a GPU for cuda, but PyTorch finds none; use --device cpu")
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    return device != "cpu" and torch.cuda.is_available()


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.resolve())


def _contents(path: Path | None, out: Path) -> str | None:
    """A hash of a file, or of the names, sizes and times of a folder's files that are not in `out`."""
    if path is None or not path.exists():
        return None
    if path.is_file():
        return sha256(path)
    inside = (one for one in path.rglob("*") if out.resolve() not in one.resolve().parents)
    files = sorted(one for one in inside if one.is_file())
    listed = [(str(one.relative_to(path)), (stat := one.stat()).st_size, stat.st_mtime_ns) for one in files]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()


def _needed(weights: Path | None) -> Path:
    from sp_fast.weights.published import where_to_find

    if weights is None or not weights.is_file():
        got = "none" if weights is None else f"{weights}, which does not exist"
        raise ValueError(
            f"--weights: expected a file of published weights of the backbone, got {got}. Download one:\n"
            f"{where_to_find()}"
        )
    return weights


def _prepared(
    out: Path,
    request: dict[str, Any],
    overwrite: bool,
    gpu: bool,
    make: Callable[[], dict[str, Any]],
) -> dict[str, Any]:
    """The experiment's arguments: those of an earlier call of the same request, or new ones."""
    from sp_fast.train import removed_on_failure

    path = out / STORED
    if path.is_file() and not overwrite:
        stored = json.loads(path.read_text())
        if other := _other(request, stored):
            raise ValueError(
                f"--out: {out} holds a fit with other {', '.join(other)}; repeat its command to go "
                "on, or use another folder or --overwrite"
            )
        return stored["arguments"]
    if path.is_file():
        # Bad input is reported before the earlier fit is removed.
        with tempfile.TemporaryDirectory() as temporary:
            _data_and_settings(Path(temporary), request, gpu)
    _clear(out)
    with removed_on_failure(out):
        arguments = make()
        write_json({"request": request, "arguments": arguments}, path)
    return arguments


def _other(request: dict[str, Any], stored: dict[str, Any]) -> list[str]:
    """What a request asks for that a stored fit does not have.

    A setting has to have the value that the fit was made with, whether that was given or chosen.
    """
    before = stored["request"]
    found = {name for name in request if name != "settings" and before.get(name) != request[name]}
    values = {name: value for name, value, _ in stored["arguments"]["settings"]}
    asked = request["settings"]
    found |= {name for name, value in asked.items() if values.get(name) != value}
    return sorted(found | before["settings"].keys() - asked.keys())


def _compared(out: Path, arguments: dict[str, Any]) -> bool:
    """Whether an earlier call finished a training without pre-training, which the report keeps."""
    from sp_fast.experiments.fit import WITHOUT
    from sp_fast.experiments.plan import Plan
    from sp_fast.experiments.store import STAMP, Source, recall

    if not (out / STAMP).is_file():
        return False
    plan = Plan(Source("fit", {**arguments, "compare": True}).load(), out, recall(out)[1])
    return any(plan.runs[key].finished for (row, _, _), key in plan.parts.items() if row == WITHOUT)


def _clear(out: Path) -> None:
    """Removes what an earlier fit wrote.

    Raises:
        FileExistsError: a file, or a folder that holds other things than a fit.
    """
    others = {one.name for one in out.iterdir()} - {DATA} if out.is_dir() else set()
    if (others and STORED not in others) or (out.exists() and not out.is_dir()):
        raise FileExistsError(f"--out: expected a new folder, or one of an earlier fit, got {out}")
    for name in WRITTEN:
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _new(
    out: Path,
    request: dict[str, Any],
    gpu: bool,
    seeds: list[int],
    compare: bool,
    console: Console,
    began: float,
) -> dict[str, Any]:
    """Gathers the data and chooses the settings; `began` is when the command did, in monotonic time."""
    import dataclasses

    from sp_fast.experiments.candidates import SECONDS, choose_proposals
    from sp_fast.experiments.fit import finetuning
    from sp_fast.experiments.pace import OF_PROPOSALS, Budget, fit_into, measure_pace
    from sp_fast.experiments.scheduler import default_jobs
    from sp_fast.experiments.settings import with_caches
    from sp_fast.progress import RunProgress
    from sp_fast.proposals.backbones import backbone_of

    weights, minutes = request["weights"], request["minutes"]
    backbone = backbone_of(weights)
    data, choices = _data_and_settings((out / DATA).resolve(), request, gpu)
    masks = next(one.value for one in choices if one.name == "masks")
    console.print("Trying several ways to make pseudo labels on some of the labelled images:")
    with RunProgress("ways", console) as progress:
        features = {"name": backbone, "weights": weights}
        seconds = SECONDS if minutes is None else min(SECONDS, 60 * minutes * OF_PROPOSALS)
        proposals, takes = choose_proposals(data, features, masks, progress, seconds)
    choices.append(proposals)
    if minutes is not None:
        chosen = {one.name: one.value for one in choices}
        pace = measure_pace(finetuning(data, weights, chosen, request["class_agnostic"]))
        chains, spent = len(seeds) * (2 if compare else 1), time.monotonic() - began
        budget = Budget(minutes, spent, takes, data.val_count, chains, default_jobs())
        choices, too_short = fit_into(choices, budget, pace)
        choices = with_caches(choices, data)
        if too_short:
            console.print(Text(too_short, style="bold"), soft_wrap=True)
    return {
        "data": dataclasses.asdict(data),
        "weights": weights,
        "backbone": backbone,
        "settings": [list(one) for one in choices],
        "class_agnostic": request["class_agnostic"],
    }


def _data_and_settings(folder: Path, request: dict[str, Any], gpu: bool) -> tuple[Any, list[Any]]:
    """The data, gathered in a folder, and the settings that follow from them without a trial."""
    from sp_fast.experiments.fit_data import gather
    from sp_fast.experiments.settings import choose

    names = ("labels", "label_images", "val", "val_images")
    files: Any = {name: request[name] and Path(request[name]) for name in names}
    data = gather(folder, [Path(one) for one in request["images"]], **files)
    return data, choose(data, request["weights"], request["settings"], gpu=gpu)


def _print_settings(arguments: dict[str, Any], console: Console) -> None:
    data = arguments["data"]
    held = " (held out of the labelled ones)" if data["held_out"] else ""
    console.print(
        Text(
            f"{data['images_count']} images to pre-train on, {data['labels_count']} labelled, "
            f"{data['val_count']} to validate on{held}: {data['val']}"
        ),
        soft_wrap=True,
    )
    from sp_fast.experiments.settings import Choice, shown

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for column in ("setting", "value", "reason"):
        table.add_column(column, overflow="fold")
    for one in (Choice(*each) for each in arguments["settings"]):
        table.add_row(*map(Text, (one.name, shown(one), one.reason)))
    console.print(table)


def _print_use(out: Path, compared: bool, console: Console) -> None:
    from sp_fast.experiments import results
    from sp_fast.experiments.plan import Plan
    from sp_fast.experiments.store import recall
    from sp_fast.experiments.use import MODEL, use

    source, seeds = recall(out)
    plan = Plan(source.load(), out, seeds)
    told = use(plan, results.collect(plan))
    lines = [f"Model:   {out / MODEL}", "", "Next:", *(f"  {one}" for one in (told.commands if told else []))]
    if not compared or len(seeds) < 3:  # with fewer, a comparison cannot tell
        lines.append("  the same command with --compare --seeds 0,1,2: does pre-training help?")
    console.print(Text("\n".join(lines)), soft_wrap=True)
