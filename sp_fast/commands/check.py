"""`sp-fast check`: what a data set contains, and what is wrong with it, before training."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sp_fast.commands.max_megapixels import MaxMegapixels
from sp_fast.data.check import CheckedFile, Source, check_coco
from sp_fast.data.faults import ERROR, KINDS, NOTE, WARNING

EXAMPLES = """
\b
Examples:
  A training and a validation set in COCO's format, with a page of pictures:
    sp-fast check train.json --images train --val val.json --val-images val \\
      --out check.html
  Labels in another format, written in COCO's format for training:
    sp-fast check labels/ --images photos --format yolo --convert train.json

Exit status: 0 without errors (there may be warnings), 1 with errors, 2 if nothing could be checked.
"""
SHOWN = 3  # examples of each kind of fault in the terminal


def check(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="Annotations: COCO file, or see --format.")],
    images: Annotated[Path, typer.Option(help="Folder of the images.", show_default=False)],
    val: Annotated[Path | None, typer.Option(help="Annotations of the validation set.")] = None,
    val_images: Annotated[
        Path | None, typer.Option(help="Folder of the validation images [same as --images].")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="HTML page to write, with pictures.")] = None,
    format: Annotated[
        str, typer.Option(help="coco, yolo, labelme, voc, cityscapes, or auto: by what is there.")
    ] = "auto",
    convert: Annotated[
        Path | None, typer.Option(help="File to write DATA to, in COCO's format, if it has no errors.")
    ] = None,
    no_images: Annotated[
        bool, typer.Option("--no-images", help="Read headers of images only: fast, finds no duplicates.")
    ] = False,
    max_megapixels: MaxMegapixels = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Overwrite --out and --convert.")] = False,
) -> None:
    """Check a data set before training: counts, faults, pictures."""
    from sp_fast.data.coco import save_coco
    from sp_fast.progress import RunProgress

    if val_images is not None and val is None:
        raise ValueError("--val-images: expected --val as well, the annotations of these images")
    for option, path in (("--out", out), ("--convert", convert)):
        if path is not None and path.exists() and not overwrite:
            raise ValueError(f"{option}: {path} exists; use --overwrite to replace it")
    train = _source(data, images, format)
    if convert is not None and not isinstance(train, tuple):
        raise ValueError(f"--convert: expected labels in another format than COCO, got {data}")
    pair = None
    if val is not None:
        folder = val_images or images
        pair = _source(val, folder, format), folder
    with RunProgress("images") as progress:
        found = check_coco(train, images, val=pair, pixels=not no_images, progress=progress)
    console = Console()
    for file in found.files:
        _print(file, console)
    if out is not None:
        from sp_fast.commands.check_page import write_page

        write_page(found, out)
        console.print(f"Wrote {out}", markup=False, highlight=False, soft_wrap=True)
    if convert is not None and isinstance(train, tuple):
        good = not found.files[0].number(ERROR)
        if good:
            save_coco(train[1], convert)
        said = f"Wrote {convert}" if good else f"--convert: {convert} is not written, since {data} has errors"
        console.print(said, markup=False, highlight=False, soft_wrap=True)
    if found.errors:
        raise typer.Exit(1)


def _source(data: Path, images: Path, format: str) -> Source:
    """What `check_coco` reads: a COCO file itself, or another format's labels as a dict."""
    from sp_fast.data.formats import detect_format, to_coco

    format = detect_format(data) if format == "auto" else format
    return data if format == "coco" else (data, to_coco(data, images, format))


def _print(file: CheckedFile, console: Console) -> None:
    console.print(f"\n{file.path}", style="bold", markup=False, highlight=False, soft_wrap=True)
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in file.counts.rows():
        table.add_row(name, Text(value))
    console.print(table)
    for severity, colour in ((ERROR, "red"), (WARNING, "yellow"), (NOTE, "cyan")):
        for kind, faults in file.by_kind().items():
            if KINDS[kind].severity != severity:
                continue
            number = "" if severity == NOTE else f" ({len(faults)})"
            console.print(f"\n[{colour}]{severity}[/]: {KINDS[kind].title}{number}", highlight=False)
            for fault in faults[:SHOWN]:
                _print_finding(str(fault), console)
            if len(faults) > SHOWN:
                console.print(f"  and {len(faults) - SHOWN} more", highlight=False)
            mend = file.mend(kind) if severity == NOTE else f"To mend: {file.mend(kind)}"
            _print_finding(mend, console, style="dim")
    console.print(f"\n{file.verdict}", style="bold", highlight=False)


def _print_finding(text: str, console: Console, style: str = "") -> None:
    # Rich would begin further lines at the margin, and break file names.
    lines = textwrap.fill(
        text,
        console.width,
        initial_indent="  ",
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
    )
    console.print(lines, markup=False, highlight=False, soft_wrap=True, style=style)
