"""The cells of an experiment's table, made once for the terminal, for markdown and for the page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sp_fast.experiments.experiment import PRETRAIN, Experiment

NOT_RUN = "-"
TEST = "Differences are taken seed by seed; higher and lower are said by Student's t-test at 5 %."


@dataclass(frozen=True)
class Line:
    """One row after one training.

    Attributes:
        row: the row's name.
        label: what it is, with an asterisk while seeds are missing.
        cells: the text under each of the block's columns.
        complete: whether all seeds are finished.
        value: mean of the first metric, or None while there is none.
    """

    row: str
    label: str
    cells: list[str]
    complete: bool
    value: float | None


@dataclass(frozen=True)
class Finding:
    """What a comparison gave: the claim, the two rows, the difference of the first metric, what that says."""

    claim: str
    pair: str
    change: str
    verdict: str

    def __str__(self) -> str:
        """The finding as one sentence."""
        return f"{self.claim}: {self.pair} = {self.change} ({self.verdict})"


@dataclass(frozen=True)
class Block:
    """The part of the table that belongs to one training.

    Attributes:
        heading: which training.
        columns: headings of the cells.
        lines: one for each row that is measured after this training.
        findings: one for each comparison that has a number.
    """

    heading: str
    columns: list[str]
    lines: list[Line]
    findings: list[Finding]


def blocks(experiment: Experiment, results: dict[str, Any]) -> list[Block]:
    """The table's blocks, one per training that is measured.

    Args:
        experiment: its rows give the lines, finished or not.
        results: as :func:`sp_fast.experiments.results.collect` gives them.
    """
    found = [_block(experiment, results, training) for training in in_order(experiment.trainings)]
    return [block for block in found if block.lines]


def in_order(trainings: Iterable[str]) -> list[str]:
    """Each name once; fine-tunings first, since they are the answer."""
    return sorted(dict.fromkeys(trainings), key=lambda name: name == PRETRAIN)


def training_heading(training: str) -> str:
    """What a training is called in headings."""
    return "As pre-trained" if training == PRETRAIN else f"Fine-tuned on {training}"


def missing(results: dict[str, Any]) -> str | None:
    """How many runs are missing, as a sentence; None when there are none."""
    left = results["runs"] - results["finished"]
    if not left:
        return None
    are = "run is" if left == 1 else "runs are"
    return f"Not complete (*): {left} of {results['runs']} {are} missing, so these numbers can change."


def seeds_text(seeds: Sequence[int]) -> str:
    """Such as `seed 0` or `seeds 0, 1, 2`."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def _block(experiment: Experiment, results: dict[str, Any], training: str) -> Block:
    rows = {}
    for row in experiment.rows:
        own = results["rows"][row.name]["trainings"].get(training)
        if own is not None and (row.trainings[training].val_images or own["summary"]):
            rows[row.name] = own
    first, *others = experiment.metrics
    others = [name for name in others if any(name in own["summary"] for own in rows.values())]
    digits = {name: _digits(rows, name) for name in (first, *others)}
    paper = any(own["expected"] is not None for own in rows.values())
    columns = [experiment.metrics[first], *["paper"] * paper]
    columns += [experiment.metrics[name] for name in others] + ["seeds"]
    lines = []
    for name, own in rows.items():
        summary, done = own["summary"], len(own["curves"])
        complete = done == len(results["seeds"])
        cells = [_value(summary.get(first), digits[first])]
        if paper:
            cells.append(NOT_RUN if own["expected"] is None else f"{own['expected']:g}")
        cells += [_value(summary.get(metric), digits[metric]) for metric in others]
        cells.append(str(done) if complete else f"{done} of {len(results['seeds'])}")
        label = results["rows"][name]["label"] + ("" if complete else " *")
        lines.append(Line(name, label, cells, complete, summary.get(first, {}).get("mean")))
    findings = [
        _finding(one, results, first, digits[first])
        for one in results["comparisons"]
        if one["training"] == training and first in one["metrics"]
    ]
    return Block(training_heading(training), columns, lines, findings)


def _finding(one: dict[str, Any], results: dict[str, Any], metric: str, digits: int) -> Finding:
    entry, wanted = one["metrics"][metric], len(results["seeds"])
    first, second = (results["rows"][one[side]]["label"] for side in ("first", "second"))
    count = f"{entry['seeds']} of {wanted}" if entry["seeds"] < wanted else str(entry["seeds"])
    said = entry["verdict"].rsplit(": ", 1)[-1]
    return Finding(
        one["claim"][:1].upper() + one["claim"][1:],
        f"{first} − {second}",
        f"{_value(entry, digits, sign='+')} {results['metrics'][metric]}",
        f"{said}, {count} seed{'s' if wanted > 1 else ''}",
    )


def _digits(rows: dict[str, Any], metric: str) -> int:
    """Decimals of a column: three figures of its largest mean."""
    means = [own["summary"][metric]["mean"] for own in rows.values() if metric in own["summary"]]
    return 1 if max(means, default=0.0) >= 10 else 2


def _value(entry: dict[str, Any] | None, digits: int, sign: str = "") -> str:
    if entry is None:
        return NOT_RUN
    mean = round(entry["mean"], digits) + 0.0  # no -0.0
    spread = "" if entry["spread"] is None else f" ± {entry['spread']:.{digits}f}"
    return f"{mean:{sign}.{digits}f}{spread}".replace("-", "−")


def print_table(experiment: Experiment, results: dict[str, Any], console: Console) -> None:
    """The table and the comparisons, in 80 columns."""
    console.print(Text(f"{results['title']}, {seeds_text(results['seeds'])}", style="bold"))
    for block in blocks(experiment, results):
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        table.add_column(block.heading, overflow="fold")
        for column in block.columns:
            table.add_column(column, justify="right", no_wrap=True)
        for line in block.lines:
            # Text, since labels may hold brackets, which are rich's markup.
            table.add_row(*map(Text, [line.label, *line.cells]), style="" if line.complete else "dim")
        console.print(table)
        for finding in block.findings:
            console.print(Text(f"{finding}"))
    if results["comparisons"]:
        console.print(Text(TEST, style="dim"))
    notice = missing(results)
    if notice:
        console.print(Text(notice, style="bold"))


def markdown(experiment: Experiment, results: dict[str, Any]) -> str:
    """The same as markdown."""
    lines = [
        f"# {_escaped(results['title'])}",
        "",
        f"Mean ± standard deviation over {seeds_text(results['seeds'])}.",
    ]
    if len(results["seeds"]) == 1:
        lines[-1] = f"A single run of each row, {seeds_text(results['seeds'])}."
    notice = missing(results)
    if notice:
        lines += ["", f"**{_escaped(notice)}**"]
    for block in blocks(experiment, results):
        lines += ["", _markdown_row([block.heading, *block.columns])]
        lines.append(_markdown_row(["---", *["---:"] * len(block.columns)]))
        lines += [_markdown_row([line.label, *line.cells]) for line in block.lines]
        lines += [""] * bool(block.findings) + [f"- {_escaped(str(finding))}" for finding in block.findings]
    lines += ["", TEST] if results["comparisons"] else []
    return "\n".join(lines) + "\n"


def _markdown_row(cells: list[str]) -> str:
    return f"| {' | '.join(_escaped(cell) for cell in cells)} |"


def _escaped(text: str) -> str:
    """The text with markdown's marks escaped."""
    return re.sub(r"([\\|*_<`])", r"\\\1", text)
