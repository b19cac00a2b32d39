"""`sp-fast experiment`: run and compare rows of pseudo labels, pre-training and fine-tuning."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

RUN_EXAMPLES = """
\b
Examples:
  The demo with three seeds:
    sp-fast experiment run demo --out runs/demo --seeds 0,1,2
  Your own experiment, 9 minutes at a time (exit status 3: not finished yet):
    sp-fast experiment run my_experiment.py --out runs/mine --minutes 9
  Two of its rows:
    sp-fast experiment run my_experiment.py --out runs/mine --rows none,prompts
  Several calls with the same --out, on GPUs or machines, share the runs:
    for gpu in 0 1 2 3; do
      CUDA_VISIBLE_DEVICES=$gpu sp-fast experiment run demo --out runs/demo &
    done; wait

If stopped or killed, run the same command again to resume.
"""
STATUS_EXAMPLES = """
\b
Example:
  sp-fast experiment status runs/demo
"""
REPORT_EXAMPLES = """
\b
Example:
  sp-fast experiment report runs/demo
"""
MORE_TO_DO = 3

app = typer.Typer(
    help="Run, watch and report comparisons of trainings.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("run", epilog=RUN_EXAMPLES)
def run(
    name: Annotated[
        str, typer.Argument(metavar="NAME|FILE.py", help="Built-in experiment, or a Python file.")
    ],
    out: Annotated[Path, typer.Option(help="Output folder; it can be moved later.", show_default=False)],
    rows: Annotated[
        str | None, typer.Option(help="Rows to run, comma-separated [all].", show_default=False)
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Random seeds, comma-separated [the experiment's].", show_default=False)
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(help="Stop after this many minutes; run again to resume.", show_default=False),
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Parallel runs [one per GPU, or per core].", show_default=False)
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option(help="Data folder, for experiments that need one.", show_default=False),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Smoke run: a small version.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Argument of the experiment; repeatable.", show_default=False
        ),
    ] = None,
) -> None:
    """Run an experiment, with a time limit if given, and write its report."""
    arguments = _settings(settings or [])
    if data_root is not None:
        arguments["data_root"] = str(data_root.resolve())
    if quick:
        arguments["quick"] = True
    run_and_report(
        name,
        out,
        arguments,
        rows=None if rows is None else rows.split(","),
        seeds=None if seeds is None else _numbers(seeds),
        minutes=minutes,
        jobs=jobs,
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
) -> None:
    """Run an experiment, write its report, and exit with the status of the command."""
    try:
        import mmdet  # noqa: F401  (fail now rather than after minutes of work)
    except ModuleNotFoundError as error:
        raise SystemExit(f"sp-fast experiment needs {error.name}: pip install 'sp_fast[mmdet]'") from None
    from sp_fast.experiments.plan import Plan
    from sp_fast.experiments.progress import TasksView
    from sp_fast.experiments.report import write_report
    from sp_fast.experiments.scheduler import OutOfTimeError, RunFailedError, default_jobs, run_all
    from sp_fast.experiments.store import Source, remember

    if minutes is not None and minutes <= 0:
        raise ValueError(f"--minutes: expected a number above 0, got {minutes:g}; leave it out for no limit")
    path = str(Path(name).resolve()) if name.endswith(".py") else name
    source = Source(path, arguments)
    experiment = source.load()
    chosen = experiment.chosen(rows)
    wanted = sorted(set(experiment.seeds if seeds is None else seeds))
    plan = Plan(experiment, out, remember(out, source, wanted))
    console = Console()
    # On SIGTERM, leave by SystemExit, so that the runs are stopped and save.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    complete = True
    try:
        with TasksView(console) as view:
            run_all(
                plan.needed([row.name for row in chosen.rows], wanted),
                source,
                jobs=jobs or default_jobs(),
                seconds=None if minutes is None else 60 * minutes,
                show=view,
            )
    except OutOfTimeError:
        complete = False
        console.print(
            f"Stopped after {minutes:g} minutes. Run the same command again to resume.", highlight=False
        )
    except KeyboardInterrupt:
        console.print("Interrupted. Run the same command again to resume.")
        raise typer.Exit(130) from None
    except RunFailedError as error:
        console.print(str(error), markup=False, highlight=False)
        raise typer.Exit(1) from None
    write_report(plan, source, console)
    if not complete:
        raise typer.Exit(MORE_TO_DO)


@app.command("status", epilog=STATUS_EXAMPLES)
def status(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The --out folder of the experiment.")],
) -> None:
    """Show what is done, running and missing, and the time left."""
    from sp_fast.experiments.plan import Plan
    from sp_fast.experiments.report import print_status
    from sp_fast.experiments.store import recall

    source, seeds = recall(folder)
    print_status(Plan(source.load(), folder, seeds), Console())


@app.command("report", epilog=REPORT_EXAMPLES)
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The --out folder of the experiment.")],
) -> None:
    """Write the table, curves and HTML page of what is finished."""
    from sp_fast.experiments.plan import Plan
    from sp_fast.experiments.report import write_report
    from sp_fast.experiments.store import recall

    source, seeds = recall(folder)
    write_report(Plan(source.load(), folder, seeds), source, Console())


def _settings(pairs: list[str]) -> dict[str, Any]:
    """Arguments by name; a value that is JSON is read as such, any other is text."""
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


def _numbers(text: str) -> list[int]:
    try:
        numbers = [int(number) for number in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 0:
        raise ValueError(f"--seeds: expected comma-separated whole numbers, such as 0,1,2, got {text!r}")
    return numbers
