"""`sp-fast demo`: the whole way on a synthetic set."""

import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the set, the runs and the report.")] = Path(
        "runs/demo"
    ),
    seed: Annotated[
        list[int] | None, typer.Option(help="Of sets and runs; give it several times for mean and spread.")
    ] = None,
    quick: Annotated[bool, typer.Option(help="A few steps on a few scenes, to see that it works.")] = False,
    fresh: Annotated[bool, typer.Option(help="Begin anew instead of keeping finished parts.")] = False,
) -> None:
    """Pre-train on unlabelled scenes, fine-tune on 20 labelled ones, compare: 8 minutes on 2 cores.

    Makes a synthetic set, proposes saliency masks, trains a small K-Net in three ways and writes report.png
    and results.json. Interrupted, it keeps what is finished.
    """
    try:
        import mmdet  # noqa: F401  (before minutes are spent on what comes first)

        from sp_fast.demo import QUICK, DemoOptions, run_demo
    except ModuleNotFoundError as error:
        raise SystemExit(f"sp-fast demo needs {error.name}: pip install 'sp_fast[mmdet]'") from None
    from sp_fast.jobs import JobFailedError

    console = Console()
    # Ended from outside, it ends its training runs too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        run_demo(out, seed or [0], QUICK if quick else DemoOptions(), console, fresh=fresh)
    except JobFailedError as error:
        console.print(str(error), markup=False, highlight=False)
        raise typer.Exit(1) from None
