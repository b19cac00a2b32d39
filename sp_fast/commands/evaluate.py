"""`sp-fast evaluate`: AP and AR of a model, of results or of masks."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

# A line with only \b keeps click from re-wrapping the paragraph below it.
EXAMPLES = """
\b
Examples:
  A trained model, with a page of curves and worst images:
    sp-fast evaluate runs/finetune --images val --annotations val.json \\
      --out evaluation
  Results in COCO's format, or what `sp-fast predict` wrote:
    sp-fast evaluate results.json --annotations val.json
    sp-fast evaluate found/predictions.json --annotations val.json
  Masks of `sp-fast propose`, without classes:
    sp-fast evaluate masks.json --annotations val.json
  Any results as boxes, without classes (the paper's Table 6):
    sp-fast evaluate results.json --annotations instances_val2017.json \\
      --class-agnostic no-categories --boxes-from-masks
"""
PAGE, NUMBERS, RESULTS = "evaluation.html", "evaluation.json", "results.json"


def evaluate(
    subject: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL|RESULTS.json|MASKS.json",
            help="Model as for `sp-fast predict`, list of results, or COCO-format file with scores.",
        ),
    ],
    annotations: Annotated[Path, typer.Option(help="Annotated objects, in COCO format.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images: for a model, and for pictures on the page.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write: evaluation.json, evaluation.html, results.json.")
    ] = None,
    class_agnostic: Annotated[
        Literal["merged", "no-categories"] | None,
        typer.Option(
            help="Ignore classes. merged: all labels become one, copies of a mask count once; "
            "no-categories: like pycocotools with useCats off."
        ),
    ] = None,
    boxes_from_masks: Annotated[
        bool,
        typer.Option(
            "--boxes-from-masks",
            help="Use the tight boxes of the masks instead of the boxes in the results.",
        ),
    ] = False,
    evaluator: Annotated[
        Literal["hotcoco", "pycocotools"], typer.Option(help="Library that computes AP and AR.")
    ] = "hotcoco",
    confirm: Annotated[
        bool, typer.Option("--confirm", help="Evaluate with both libraries; a difference is an error.")
    ] = False,
    device: Annotated[str, typer.Option(help="Device of a model: cpu, cuda, cuda:1, ... or auto.")] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an evaluation in --out.")] = False,
) -> None:
    """Measure AP and AR, for masks and boxes, of a model, of results or of masks."""
    from sp_fast.data.coco import load_coco
    from sp_fast.evaluation import evaluate as evaluated
    from sp_fast.evaluation import read_detections
    from sp_fast.evaluation.page import print_report
    from sp_fast.evaluation.report import largest_difference

    is_file = subject.suffix == ".json"
    if images is None and not is_file:
        raise ValueError("--images: expected the folder of the annotated images, to predict them")
    if out is not None:
        _check_out(out, (PAGE, NUMBERS) if is_file else (PAGE, NUMBERS, RESULTS), overwrite)
    truth = load_coco(annotations, images, class_agnostic=class_agnostic is not None)
    ignored: Any = class_agnostic.replace("-", "_") if class_agnostic else False
    if is_file:
        found = read_detections(subject, truth, ignore_classes=bool(ignored))
    else:
        found = _predicted(subject, device, truth, images, bool(ignored))
    protocol = {"class_agnostic": ignored, "boxes_from_masks": boxes_from_masks}
    report = evaluated(truth, found, **protocol, evaluator=evaluator)
    if confirm:
        other = "pycocotools" if evaluator == "hotcoco" else "hotcoco"
        again = evaluated(truth, found, **protocol, evaluator=other)
        difference = largest_difference(report, again)
        if difference > 1e-6:
            raise ValueError(f"--confirm: hotcoco and pycocotools differ by up to {difference:.2g}")
        typer.echo(f"hotcoco and pycocotools agree: the largest difference is {difference:.1g}.")
    print_report(report, Console())
    if out is not None:
        _write(out, report, None if is_file else found.entries, subject, annotations, images)
        typer.echo(f"Page: {out / PAGE}")


def _check_out(out: Path, names: Sequence[str], overwrite: bool) -> None:
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"--out: expected a folder, got the file {out}")
    for name in names:
        if not overwrite and (out / name).exists():
            raise FileExistsError(f"--out: {out / name} exists; add --overwrite to replace it")
    if find_spec("matplotlib") is None:
        raise ValueError("--out: the page needs matplotlib: pip install 'sp_fast[mmdet]'")


def _predicted(subject: Path, device: str, truth: dict[str, Any], images: Any, ignore: bool) -> Any:
    from sp_fast.evaluation import predict_detections
    from sp_fast.inference import load
    from sp_fast.progress import RunProgress

    model = load(subject, device=device)
    with RunProgress("images", Console(stderr=True)) as progress:
        return predict_detections(model, truth, images, ignore_classes=ignore, progress=progress)


def _write(
    out: Path,
    report: Any,
    results: list | None,
    subject: Path,
    annotations: Path,
    images: Path | None,
) -> None:
    import shlex
    import sys

    from sp_fast.data.coco import save_coco
    from sp_fast.evaluation.page import page
    from sp_fast.files import write_json, write_text

    details = {"evaluated": str(subject), "annotations": str(annotations), "evaluator": report.evaluator}
    command = shlex.join(["sp-fast", *sys.argv[1:]])
    html = page(report, f"Evaluation of {subject.name}", images, command, details)
    if results is not None:
        save_coco(results, out / RESULTS)
    write_text(html, out / PAGE)
    write_json({**details, **report.as_json()}, out / NUMBERS)
