"""The commands of `sp-fast`, and how their errors are shown."""

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sp_fast import __version__
from sp_fast.commands.check import EXAMPLES as CHECK_EXAMPLES
from sp_fast.commands.check import check
from sp_fast.commands.data import app as data
from sp_fast.commands.demo import EXAMPLES as DEMO_EXAMPLES
from sp_fast.commands.demo import demo
from sp_fast.commands.draw import EXAMPLES as DRAW_EXAMPLES
from sp_fast.commands.draw import draw
from sp_fast.commands.evaluate import EXAMPLES as EVALUATE_EXAMPLES
from sp_fast.commands.evaluate import evaluate
from sp_fast.commands.experiment import app as experiment
from sp_fast.commands.export import EXAMPLES as EXPORT_EXAMPLES
from sp_fast.commands.export import export
from sp_fast.commands.fit import EXAMPLES as FIT_EXAMPLES
from sp_fast.commands.fit import fit
from sp_fast.commands.kernels import EXAMPLES as KERNELS_EXAMPLES
from sp_fast.commands.kernels import kernels
from sp_fast.commands.predict import EXAMPLES as PREDICT_EXAMPLES
from sp_fast.commands.predict import predict
from sp_fast.commands.propose import EXAMPLES as PROPOSE_EXAMPLES
from sp_fast.commands.propose import propose
from sp_fast.commands.random_boxes import EXAMPLES as RANDOM_BOXES_EXAMPLES
from sp_fast.commands.random_boxes import random_boxes
from sp_fast.commands.region_boxes import EXAMPLES as REGION_BOXES_EXAMPLES
from sp_fast.commands.region_boxes import region_boxes
from sp_fast.commands.score import EXAMPLES as SCORE_EXAMPLES
from sp_fast.commands.score import score
from sp_fast.commands.train import PASSED_ON, train


class _Commands(TyperGroup):
    """The commands; takes off what pydantic, with which typer checks options, puts before an error."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            error.message = error.message.removeprefix("Value error, ")
            raise


app = typer.Typer(
    name="sp-fast",
    cls=_Commands,
    help="Saliency-prompt pre-training of query-based instance segmenters.",
    context_settings={"help_option_names": ["--help", "-h"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sp_fast {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


app.command("fit", epilog=FIT_EXAMPLES)(fit)
app.command("predict", epilog=PREDICT_EXAMPLES)(predict)
app.command("evaluate", epilog=EVALUATE_EXAMPLES)(evaluate)
app.command("export", epilog=EXPORT_EXAMPLES)(export)
app.command("check", epilog=CHECK_EXAMPLES)(check)
app.command("propose", epilog=PROPOSE_EXAMPLES)(propose)
app.command("train", context_settings=PASSED_ON, add_help_option=False)(train)
app.command("score", epilog=SCORE_EXAMPLES)(score)
app.command("random-boxes", epilog=RANDOM_BOXES_EXAMPLES)(random_boxes)
app.command("region-boxes", epilog=REGION_BOXES_EXAMPLES)(region_boxes)
app.command("draw", epilog=DRAW_EXAMPLES)(draw)
app.command("kernels", epilog=KERNELS_EXAMPLES)(kernels)
app.add_typer(data, name="data")
app.add_typer(experiment, name="experiment")
app.command("demo", epilog=DEMO_EXAMPLES)(demo)

# What Python, PyTorch, oneDNN, cuDNN and CUDA say of a full memory.
_FULL = (
    "can't allocate memory",
    "can't start new thread",
    "could not create a primitive",
    "CUDNN_STATUS_ALLOC_FAILED",
    "out of memory",
)
_GPU = ("CUDA", "CUDNN")


def run() -> None:
    """Run the command line; errors of the user print one line to standard error, with exit status 2."""
    _warn_in_one_line()
    try:
        app()
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, OverflowError) as error:
        print(f"Error: {_message(error)}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        full = any(said in str(error) for said in _FULL)
        if not full and not isinstance(error, MemoryError):
            raise
        print(f"Error: not enough memory ({_shortage(error)})", file=sys.stderr)
        sys.exit(2)


def _shortage(error: Exception) -> str:
    """What did not fit, and for a GPU how to need less."""
    text = _message(error) or "none left"
    if not any(said in text for said in _GPU):
        return text
    # PyTorch goes on with a page of hints about its allocator.
    told = ". ".join(text.splitlines()[0].split(". ")[:2]).rstrip(".")
    return f"{told}; fewer images at once (--batch-size 1) or smaller ones need less, --device cpu needs none"


def _warn_in_one_line() -> None:
    """Shows each warning of this package once, without the source line, and under torchrun by one process."""
    show, package = warnings.showwarning, str(Path(__file__).parents[1])
    shown: set[str] = set()

    def show_one(message: Warning | str, category: type[Warning], filename: str, *others: Any) -> None:
        if category is not UserWarning or not filename.startswith(package):
            show(message, category, filename, *others)
        elif str(message) not in shown and os.environ.get("LOCAL_RANK", "0") == "0":
            shown.add(str(message))
            print(f"Warning: {message}", file=sys.stderr)

    warnings.showwarning = show_one  # type: ignore[assignment]


def _message(error: Exception) -> str:
    """The error's text, without the traceback that torch adds to errors of a process that loads data."""
    text = str(error)
    if "\nOriginal Traceback" in text:
        text = text.rstrip().rsplit("\n", 1)[-1].partition(": ")[2]
    return text
