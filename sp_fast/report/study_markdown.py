"""The study's results as a fragment of markdown, put between two markers of a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sp_fast.files import write_text
from sp_fast.report.study_table import change, labelled_images, value
from sp_fast.study.pieces import PERCENTS
from sp_fast.study.results import COMPARED, RUNS
from sp_fast.study.variants import VARIANTS

BEGIN = "<!-- results of sp-fast study: begin; written by the command, not by hand -->"
END = "<!-- results of sp-fast study: end -->"


def markdown(results: dict[str, Any], picture: str | None = None) -> str:
    """Everything measured: the command, the device, AP by variant, differences, proposals, speed."""
    options = results["options"]
    lines = [
        f"{results['title']}; {options['size']} pixels; {options['images']:,} images of pre-training; "
        f"{options['finetune_steps']} steps of fine-tuning; seeds {', '.join(map(str, results['seeds']))}; "
        f"on {' and '.join(results['devices']) or 'no device yet'}; PyTorch {results['torch']}.",
        "",
        "```",
        results["command"],
        "```",
        "",
    ]
    if results["missing"]:
        lines += [f"Not complete: {len(results['missing'])} runs are left.", ""]
    lines += _precision(results)
    lines += _differences(results)
    lines += _proposals(results)
    lines += _speed(results)
    if picture:
        lines += [f"![Learning curves]({picture})", ""]
    return "\n".join(lines)


_COLUMNS = {
    "class_agnostic": "objects: AP",
    "class_agnostic_50": "AP50",
    "class_agnostic_recall": "AR",
    "class_agnostic_recall_large": "AR large",
    "class_agnostic_best_iou": "best IoU",
    "classes": "80 classes: AP",
    "classes_50": "AP50",
}


def _precision(results: dict[str, Any]) -> list[str]:
    lines = [
        "Masks on val, mean and standard deviation over seeds, all of 0 to 100. AP and AR (at 100 masks) are "
        "COCO's; objects: class-agnostic; best IoU: of each object with its best mask. Labels: "
        f"{labelled_images(results) or 'none yet'}.",
        "",
    ]
    for percent in RUNS:
        columns = [name for name in _COLUMNS if percent != "0" or not name.startswith("classes")]
        rows = []
        for variant in results["variants"]:
            entry = results["summary"].get(variant, {}).get(percent)
            if percent != "0" or entry:
                cells = [value((entry or {}).get(name)) for name in columns]
                seeds = len(entry["class_agnostic"]["values"]) if entry else 0
                rows.append(_row([VARIANTS[variant].title, *cells, str(seeds)]))
        if rows:
            title = "no labels: as pre-trained" if percent == "0" else f"fine-tuned on {percent} %"
            lines += [*_head([title, *(_COLUMNS[name] for name in columns), "seeds"]), *rows, ""]
    return lines


def _differences(results: dict[str, Any]) -> list[str]:
    if not results["differences"]:
        return []
    titles = [title for name in COMPARED for title in (_COLUMNS[COMPARED[name]], "says")]
    head = ["claim", "here", "labels", *titles, "seeds"]
    lines = [
        "Claims, and the differences that came, by seed (t-test at 5 %):",
        "",
        *_head(head, left=(0, 1, *range(4, 4 + len(titles), 2))),
    ]
    for one in results["differences"]:
        cells = [one["claim"], f"{one['first']} - {one['second']}", f"{one['percent']} %"]
        cells += [cell for name in COMPARED for cell in (change(one[name]), one[name]["verdict"])]
        lines.append(_row([*cells, str(one["seeds"])]))
    return [*lines, ""]


def _proposals(results: dict[str, Any]) -> list[str]:
    if not results["proposals"]:
        return []
    head = [
        "pseudo labels",
        "images",
        "masks an image",
        "mean best IoU",
        "above 0.5",
        "the same, large objects",
    ]
    lines = ["How well the pseudo labels cover the annotated objects:", "", *_head(head)]
    for preset, splits in results["proposals"].items():
        for split, quality in splits.items():
            every, large = quality["by_size"]["all"], quality["by_size"]["large"]
            lines.append(
                _row(
                    [
                        f"{preset}, {split}",
                        str(quality["images"]),
                        f"{quality['masks_per_image']:.1f}",
                        _number(every["mean_best_iou"], ".3f"),
                        _number(every["above_half"], ".1%"),
                        f"{_number(large['mean_best_iou'], '.3f')}, {_number(large['above_half'], '.1%')}",
                    ]
                )
            )
    return [*lines, ""]


def _speed(results: dict[str, Any]) -> list[str]:
    runs = [run for kinds in results["runs"].values() for run in kinds.get("pretrain", {}).values()]
    tunings = [
        run
        for kinds in results["runs"].values()
        for percent in PERCENTS
        for run in kinds.get(f"finetune-{percent}", {}).values()
    ]
    if not runs or not tunings:
        return []
    rates = [run["images_per_second"] for run in runs]
    total = sum(run["wall_seconds"] for run in [*runs, *tunings])
    return [
        f"Pre-training saw {min(rates):.1f} to {max(rates):.1f} images a second; all "
        f"{len(runs) + len(tunings)} runs together took {total / 60:.0f} minutes, evaluation included.",
        "",
    ]


def _number(number: float | None, form: str) -> str:
    return "-" if number is None else format(number, form)


def _head(cells: list[str], left: tuple[int, ...] = (0,)) -> list[str]:
    return [_row(cells), _row(["---" if i in left else "---:" for i in range(len(cells))])]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write_fragment(path: Path, fragment: str) -> None:
    """Puts the fragment between the markers of a page; a page without them gets both at its end.

    Raises:
        ValueError: one marker is there without the other, or they are in the wrong order.
    """
    page = path.read_text() if path.is_file() else ""
    begin, end = page.find(BEGIN), page.find(END)
    if (begin < 0) != (end < 0) or end < begin:
        raise ValueError(f"{path}: expected both markers in order, {BEGIN} and {END}; mend or remove them")
    block = f"{BEGIN}\n\n{fragment.strip()}\n\n{END}"
    if begin >= 0:
        page = page[:begin] + block + page[end + len(END) :]
    else:
        page = f"{page.rstrip()}\n\n{block}\n".lstrip()
    write_text(page, path)
