"""`sp-fast experiment`: rows of pseudo labels, pre-training and fine-tuning, run and compared."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

RUN_EXAMPLES = """
\b
Examples:
  The demo with three seeds:
    sp-fast experiment run demo --out runs/demo --seeds 0,1,2
  Your own experiment, 9 minutes at a time (exit status 3: not finished):
    sp-fast experiment run my_experiment.py --out runs/mine --minutes 9
  Two of its rows:
    sp-fast experiment run my_experiment.py --out runs/mine \\
      --rows none,prompts
  A table of the paper on 8 GPUs, one training at a time on all of them:
    sp-fast experiment run table1 --data-root DATA --out runs/table1 \\
      --processes 8
  Calls with the same --out, on several GPUs or machines, divide the runs:
    for gpu in 0 1 2 3; do
      CUDA_VISIBLE_DEVICES=$gpu sp-fast experiment run demo --out runs/demo &
    done; wait

If it was stopped or killed, run the same command again to continue.
"""
MORE_TO_DO = 3
EXAMPLE = """
\b
Example:
  sp-fast experiment {} runs/demo
"""

Out = Annotated[Path, typer.Argument(metavar="DIR", help="The --out folder of the experiment.")]

app = typer.Typer(
    help="Run experiments, show their status and report them.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("run", epilog=RUN_EXAMPLES)
def run(
    name: Annotated[
        str, typer.Argument(metavar="NAME|FILE.py", help="Built-in experiment, or file that defines one.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for all output; it can be moved.", show_default=False)],
    rows: Annotated[str | None, typer.Option(help="Rows to run, comma-separated [all].")] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Random seeds, comma-separated [the experiment's].")
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(help="Time limit in minutes; run again to continue.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Number of runs at once [as many as GPUs or cores allow].")
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="Processes per training and for proposals (torchrun), one GPU each.")
    ] = 1,
    data_root: Annotated[
        Path | None, typer.Option(help="Folder of the data, for experiments that take one.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Smoke run of a few steps.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Argument of the experiment; repeatable."),
    ] = None,
) -> None:
    """Run an experiment as far as the time limit allows, and report it.

    An experiment has rows: ways of pre-training, which become the rows of the table in the report.
    """
    arguments = _settings(settings or [])
    if data_root is not None:
        arguments["data_root"] = str(data_root.resolve())
    if quick:
        arguments["quick"] = True
    chosen = None if rows is None else rows.split(",")
    numbers = None if seeds is None else seed_numbers(seeds)
    run_and_report(
        name, out, arguments, rows=chosen, seeds=numbers, minutes=minutes, jobs=jobs, processes=processes
    )


def run_and_report(
    name: str,
    out: Path,
    arguments: dict[str, Any],
    *,
    rows: list[str] | None = None,
    seeds: list[int] | None = None,
    minutes: float | None = None,
    jobs: int | None = None,
    processes: int = 1,
    finish: Callable[[Any], Any] | None = None,
) -> None:
    """Runs an experiment, writes its report, and exits with the command's status.

    `finish` is called with the plan before the report, unless runs are missing.
    """
    if minutes is not None and minutes <= 0:
        raise ValueError(f"--minutes: expected a number above 0, got {minutes:g}; leave it out for no limit")
    from sp_fast.experiments.scheduler import OutOfTimeError, RunFailedError, default_jobs, run_all

    console = Console()
    # When terminated, this process stops its runs, which save.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    complete = True
    try:
        _need_mmdet()
        from sp_fast.experiments.inputs import check_inputs
        from sp_fast.experiments.plan import Plan
        from sp_fast.experiments.progress import progress
        from sp_fast.experiments.report import write_report
        from sp_fast.experiments.store import Source, remember

        source = Source(str(Path(name).resolve()) if name.endswith(".py") else name, arguments)
        experiment = source.load()
        chosen = experiment.chosen(rows)
        wanted = sorted(set(experiment.seeds if seeds is None else seeds))
        check_inputs(Plan(experiment, out, wanted), chosen, wanted)
        plan = Plan(experiment, out, remember(out, source, wanted))
        with progress(console) as show:
            seconds = None if minutes is None else 60 * minutes
            runs = plan.needed(chosen, wanted)
            most = default_jobs(processes)
            at_once = {"jobs": jobs or most, "processes": processes}
            run_all(runs, source, **at_once, seconds=seconds, show=show)
    except (KeyboardInterrupt, SystemExit) as stopped:
        console.print("Interrupted. Run the same command again to continue.")
        raise typer.Exit(getattr(stopped, "code", 130)) from None
    except OutOfTimeError:
        complete = False
        console.print(
            f"Stopped after {minutes:g} minutes. Run the same command again to continue.", highlight=False
        )
    except RunFailedError as error:
        console.print(str(error), markup=False, highlight=False)
        raise typer.Exit(1) from None
    if complete and finish is not None:
        finish(plan)
    write_report(plan, source, console)
    if not complete:
        raise typer.Exit(MORE_TO_DO)


def _need_mmdet() -> None:
    """Imports mmdet, so that its absence shows before minutes of other work."""
    try:
        import mmdet  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(f"experiments need {error.name}: pip install 'sp_fast[mmdet]'") from None


@app.command("status", epilog=EXAMPLE.format("status"))
def status(folder: Out) -> None:
    """Show which runs are done, running and missing, and the time left."""
    from sp_fast.experiments.report import print_status

    print_status(_recalled(folder)[0], Console())


@app.command("report", epilog=EXAMPLE.format("report"))
def report(folder: Out) -> None:
    """Write the table, the curves and the page of the finished runs."""
    from sp_fast.experiments.report import write_report

    write_report(*_recalled(folder), Console())


def _recalled(folder: Path) -> tuple[Any, Any]:
    """Plan and source of the experiment in a folder."""
    from sp_fast.experiments.plan import Plan
    from sp_fast.experiments.store import recall

    source, seeds = recall(folder)
    return Plan(source.load(), folder, seeds), source


def _settings(pairs: list[str]) -> dict[str, Any]:
    """Arguments by name; values are JSON if they can be parsed, else text."""
    arguments: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (equals and name.isidentifier()):
            raise ValueError(f"--set: expected KEY=VALUE, such as size=160, got {pair!r}")
        try:
            arguments[name] = json.loads(value)
        except ValueError:
            arguments[name] = value
    return arguments


def seed_numbers(text: str) -> list[int]:
    """The numbers of `--seeds`."""
    numbers = text.split(",")
    if not all(number.strip().isdecimal() for number in numbers):
        raise ValueError(f"--seeds: expected comma-separated whole numbers, such as 0,1,2, got {text!r}")
    return [int(number) for number in numbers]
