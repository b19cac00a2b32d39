"""`sp-fast score`: what masks look like in numbers, and how well they cover annotated objects."""

from __future__ import annotations

import dataclasses
import functools
import json
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

if TYPE_CHECKING:
    from sp_fast.proposals.comparison import Comparison

_WIDEST = 16  # characters of a file's name in a table of 80; longer ones are numbered

EXAMPLES = """
\b
Examples:
  How well masks cover annotated objects:
    sp-fast score masks.json --annotations instances_val.json
  Two files side by side, with a page of curves and pictures:
    sp-fast score old.json new.json --annotations instances_val.json \\
      --images val --page scores.html
  Without annotations:
    sp-fast score masks.json --images photos --page scores.html
"""


def score(
    masks: Annotated[
        list[Path], typer.Argument(metavar="MASKS.json...", help="Files made by `sp-fast propose`.")
    ],
    annotations: Annotated[Path | None, typer.Option(help="Annotated objects, in COCO format.")] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of the images, for pictures on the page.")
    ] = None,
    page: Annotated[Path | None, typer.Option(help="HTML page to write, with curves and pictures.")] = None,
    samples: Annotated[
        int,
        typer.Option(min=1, max=200, help="Images on the page: best, typical and worst, or evenly spread."),
    ] = 12,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="JSON file to write, with all numbers.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Overwrite --page and --json.")] = False,
) -> None:
    """Describe masks, and score them in their order against annotated objects."""
    from sp_fast.evaluation.sources import check_images
    from sp_fast.files import write_text
    from sp_fast.progress import RunProgress
    from sp_fast.proposals.comparison import compare

    _check_outputs(images, page, json_file, overwrite)
    check = None
    if images is not None:
        whose = f"of {' and '.join(path.name for path in masks)}"
        check = functools.partial(check_images, folder=images, whose=whose)
    with RunProgress("images", transient=True) as progress:
        found = compare(masks, annotations, progress, check)
    console = Console()
    _print(found, console)
    if json_file is not None:
        write_text(_json(found), json_file)
    if page is not None:
        from sp_fast.commands.score_page import html

        write_text(html(found, images, samples, shlex.join(["sp-fast", *sys.argv[1:]])), page)
    for path in (json_file, page):
        if path is not None:
            console.print(f"Wrote {path}", markup=False, highlight=False, soft_wrap=True)


def _check_outputs(images: Path | None, page: Path | None, json_file: Path | None, overwrite: bool) -> None:
    for option, path in (("--page", page), ("--json", json_file)):
        if path is not None and path.is_dir():
            raise IsADirectoryError(f"{option}: expected a file, got the folder {path}")
        if path is not None and path.exists() and not overwrite:
            raise FileExistsError(f"{option}: {path} exists; add --overwrite to replace it")
    if images is not None and page is None:
        raise ValueError("--images: expected --page as well, the page to draw the images on")
    if images is not None and not images.is_dir():
        raise FileNotFoundError(f"--images: expected the folder of the images, got {images}")
    if page is not None and find_spec("matplotlib") is None:
        raise ValueError("--page: the page needs matplotlib: pip install 'sp_fast[mmdet]'")


def _print(found: Comparison, console: Console) -> None:
    from sp_fast.commands import score_tables as tables
    from sp_fast.data.faults import counted

    files = found.files
    several = len(files) > 1
    if several and any(len(one.label) > _WIDEST for one in files):
        for k, one in enumerate(files, 1):
            console.print(f"{k}: {one.label}", markup=False, highlight=False, soft_wrap=True)
        files = [dataclasses.replace(one, label=str(k)) for k, one in enumerate(files, 1)]
    _table(console, ["", *(one.label if several else "" for one in files)], tables.overview(files))
    if found.objects is None:
        console.print(counted(len(found.names), "image"), highlight=False)
        return
    objects = sum(len(found.objects.masks[name]) for name in found.names)
    skip = 0 if several else 1
    heading = ["", *["file"][skip:]]
    console.print("Mean best IoU of the objects, and share of them above 0.5", highlight=False)
    lines = [[line[0], *line[1 + skip :]] for line in tables.coverage(files)]
    _table(console, [*heading, "all objects", "small", "medium", "large"], lines)
    if note := tables.lines_left_out(files):
        console.print(note, highlight=False)
    console.print("Share above 0.5 with the first masks of each image, by their order", highlight=False)
    lines = [[line[0], *line[1 + skip :]] for line in tables.orders(files)]
    _table(console, [*heading, *map(str, tables.COUNTS)], lines)
    console.print(
        f"{counted(objects, 'object')} in {len(found.names)} of {len(found.objects.images)} annotated images",
        highlight=False,
    )


def _table(console: Console, headings: list[str], lines: list[list[str]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False, show_header=any(headings))
    for k, heading in enumerate(headings):
        # Names of files are folded on a narrow terminal, numbers never.
        if k == 0 or heading == "file":
            table.add_column(heading, no_wrap=k == 0, overflow="fold")
        else:
            table.add_column(Text(heading), justify="right", overflow="fold", min_width=6)
    last = None
    for line in lines:
        # The first cell of several lines that share it is written once.
        table.add_row("" if line[0] == last else line[0], *map(Text, line[1:]))
        last = line[0]
    console.print(table)


def _json(found: Comparison) -> str:
    text = json.dumps(found.as_json(), default=lambda array: array.tolist())
    return json.dumps(json.loads(text, parse_constant=lambda _: None), indent=1)  # JSON has no NaN
