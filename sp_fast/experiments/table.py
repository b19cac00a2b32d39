"""The table of an experiment, made once for the terminal, for markdown and for the page."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sp_fast.experiments.experiment import PRETRAIN
from sp_fast.experiments.results import LEVEL

NOT_RUN = "-"
PAPER = "paper"  # label of a line of published values
LABEL_WIDTH = 20  # columns that labels should have in a terminal
SIZES = ("small", "medium", "large")
TEST = (
    "Differences are paired by seed, ± their standard error; higher and lower: p < 0.05 in Student's t-test."
)


class Line(NamedTuple):
    """One row after one training; an asterisk ends the label while seeds are missing."""

    row: str
    label: str
    cells: tuple[str, ...]
    complete: bool
    value: float | None  # mean of the first metric
    paper: tuple[str, ...] = ()  # published values for a second line; empty without any
    by_seed: tuple[str, ...] = ()  # the first metric with each seed; empty for a single seed


class Block(NamedTuple):
    """All rows after one training, and a sentence for each comparison that has a number."""

    heading: str
    columns: list[str]
    lines: list[Line]
    findings: list[str]


class Grid(NamedTuple):
    """Values with two headings above them: `columns` below each of `groups`, names of sizes or of rows."""

    groups: dict[str, str]  # name -> heading
    columns: list[str]
    lines: list[GridLine]


class GridLine(NamedTuple):
    """A size, a class or a row, with the cells of all groups; only a row has a `row`."""

    label: str
    cells: list[str]
    objects: str = ""
    row: str | None = None


def trainings(results: dict[str, Any]) -> list[str]:
    """Names of all trainings; fine-tunings first, since they are what is compared."""
    names = dict.fromkeys(name for row in results["rows"].values() for name in row["trainings"])
    return sorted(names, key=lambda name: name == PRETRAIN)


def training_heading(training: str) -> str:
    """Heading of a training."""
    return "As pre-trained" if training == PRETRAIN else f"Fine-tuned on {training}"


def title(results: dict[str, Any]) -> str:
    """The experiment's title, with the number of finished runs while some are missing."""
    done, runs = results["finished"], results["runs"]
    return results["title"] if done == runs else f"{results['title']} ({done} of {runs} runs)"


def about_differences(results: dict[str, Any]) -> str:
    """How to read the comparisons, and how many there are; empty without any."""
    count = sum(next(iter(results["metrics"])) in one["metrics"] for one in results["comparisons"])
    if not count:
        return ""
    if count == 1:
        return TEST
    return (
        f"{TEST} Of {count} such differences, one in twenty comes out so by chance; with Bonferroni's "
        f"correction, p < {LEVEL / count:.2g} is significant."
    )


def missing(results: dict[str, Any]) -> str | None:
    """A sentence that says how many runs are missing, or None."""
    left = results["runs"] - results["finished"]
    if not left:
        return None
    are = "run is" if left == 1 else "runs are"
    return f"Not complete (*): {left} of {results['runs']} {are} missing, so these numbers can change."


def seeds_text(seeds: Sequence[int]) -> str:
    """Such as `seed 0` or `seeds 0, 1, 2`."""
    return f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"


def blocks(results: dict[str, Any]) -> list[Block]:
    """One block per fine-tuning, and one for pre-training if it was evaluated."""
    found = []
    for training in trainings(results):
        all_rows = {name: row["trainings"].get(training) for name, row in results["rows"].items()}
        rows = {name: row for name, row in all_rows.items() if row}
        if training != PRETRAIN or any(row["summary"] for row in rows.values()):
            found.append(_block(results, training, rows))
    return found


def _block(results: dict[str, Any], training: str, rows: dict[str, Any]) -> Block:
    first, wanted = next(iter(results["metrics"])), len(results["seeds"])
    columns, published = {}, {}
    for metric, heading in results["metrics"].items():
        entries = [row["summary"].get(metric) for row in rows.values()]
        expected = [row["expected"].get(metric) for row in rows.values()]
        if metric == first or any(entries) or any(value is not None for value in expected):
            columns[heading] = _column(entries)
            published[heading] = ["" if value is None else f"{value:.1f}" for value in expected]
    done = {name: len(row["curves"]) for name, row in rows.items()}
    columns["seeds"] = [str(n) if n == wanted else f"{n} of {wanted}" for n in done.values()]
    published["seeds"] = [""] * len(rows)
    ours, theirs = (zip(*one.values(), strict=True) for one in (columns, published))
    lines = []
    for name, cells, paper in zip(rows, ours, theirs, strict=True):
        complete = done[name] == wanted
        label = results["rows"][name]["label"] + ("" if complete else " *")
        summary = rows[name]["summary"].get(first, {})
        each = _by_seed(summary.get("values", {}), results["seeds"])
        value = summary.get("mean")
        lines.append(Line(name, label, cells, complete, value, paper if any(paper) else (), each))
    digits = _digits([row["summary"].get(first) for row in rows.values()])
    compared = [one for one in results["comparisons"] if one["training"] == training]
    findings = [_finding(one, results, first, digits) for one in compared if first in one["metrics"]]
    heading = training if training in results["analyses"] else training_heading(training)
    return Block(heading, list(columns), lines, findings)


def _by_seed(values: Mapping[str, float], seeds: Sequence[int]) -> tuple[str, ...]:
    if len(seeds) == 1 or not values:
        return ()
    each = [values.get(str(seed)) for seed in seeds]
    return tuple(NOT_RUN if value is None else f"{value:.2f}" for value in each)


def by_size(results: dict[str, Any], training: str) -> Grid:
    """AP and AR of each row for small, medium and large objects."""
    rows = _with_details(results, training)
    if not rows:
        return Grid({}, [], [])
    sizes = {size: [row["sizes"][size] for row in rows.values()] for size in SIZES}
    columns = ["AP", "AR"]
    cells = [_column([one[name] for one in entries]) for entries in sizes.values() for name in columns]
    lines = [
        GridLine(results["rows"][name]["label"], list(one), row=name)
        for name, one in zip(rows, zip(*cells, strict=True), strict=True)
    ]
    return Grid({size: f"{size}: {_objects(entries)}" for size, entries in sizes.items()}, columns, lines)


def by_class(results: dict[str, Any], training: str) -> Grid:
    """AP, AP50 and AR of each class after each row, most objects first; of more than three rows only AP."""
    rows = _with_details(results, training)
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows.values():
        for name, entry in row["classes"].items():
            found.setdefault(name, []).append(entry)
    names = sorted(found, key=lambda name: -max(max(one["objects"].values()) for one in found[name]))
    columns = ["AP", "AP50", "AR"] if len(rows) <= 3 else ["AP"]
    cells = [
        _column([row["classes"].get(name, {}).get(column) for name in names])
        for row in rows.values()
        for column in columns
    ]
    lines = [
        GridLine(name, list(one), _objects(found[name]))
        for name, one in zip(names, zip(*cells, strict=True), strict=True)
    ]
    return Grid({row: results["rows"][row]["label"] for row in rows}, columns, lines)


def _with_details(results: dict[str, Any], training: str) -> dict[str, Any]:
    """Values by size and class of the rows that have them."""
    found = {name: row["trainings"].get(training, {}) for name, row in results["rows"].items()}
    return {name: row["details"] for name, row in found.items() if row.get("details", {}).get("sizes")}


def _objects(entries: Sequence[dict[str, Any]]) -> str:
    """Number of objects; the lowest and the highest if the seeds differ."""
    counts = {count for entry in entries for count in entry["objects"].values()}
    return "–".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))


def _column(entries: Sequence[dict[str, Any] | None]) -> list[str]:
    return [_value(entry, _digits(entries)) for entry in entries]


def _finding(one: dict[str, Any], results: dict[str, Any], metric: str, digits: int) -> str:
    entry, wanted = one["metrics"][metric], len(results["seeds"])
    first, second = (results["rows"][one[side]]["label"] for side in ("first", "second"))
    count = f"{entry['seeds']} of {wanted}" if entry["seeds"] < wanted else str(entry["seeds"])
    verdict = entry["verdict"].rsplit(": ", 1)[-1]
    if (p := entry["p"]) is not None:
        verdict += f", p = {p:.2g}" if p >= 0.001 else ", p < 0.001"
    shown = {"mean": entry["mean"], "spread": entry["error"]}
    return (
        f"{one['claim'][:1].upper()}{one['claim'][1:]}: {first} − {second} = "
        f"{_value(shown, digits, sign='+')} {results['metrics'][metric]} "
        f"({verdict}, {count} seed{'s' if wanted > 1 else ''})"
    )


def _digits(entries: Sequence[dict[str, Any] | None]) -> int:
    """Decimals of a column: three figures of its largest mean."""
    return 1 if max((entry["mean"] for entry in entries if entry), default=0.0) >= 10 else 2


def _value(entry: dict[str, Any] | None, digits: int, sign: str = "") -> str:
    if entry is None:
        return NOT_RUN
    mean = round(entry["mean"], digits) + 0.0  # no -0.0
    spread = "" if entry["spread"] is None else f" ± {entry['spread']:.{digits}f}"
    return f"{mean:{sign}.{digits}f}{spread}".replace("-", "−")


def print_table(results: dict[str, Any], console: Console) -> None:
    """Prints the table and the comparisons."""
    # Text, since labels may hold brackets, which are rich's markup.
    console.print(Text(f"{title(results)}, {seeds_text(results['seeds'])}", style="bold"))
    for block in blocks(results):
        console.print("", _terminal_table(block, console.width), *map(Text, block.findings), sep="\n")
    if note := about_differences(results):
        console.print(Text(note, style="dim"))
    notice = missing(results)
    if notice:
        console.print(Text(notice, style="bold"))


def _terminal_table(block: Block, width: int) -> Table:
    """The block as a table; the spread follows its mean without spaces where labels would have no room."""
    rows = [block.columns, *(line.cells for line in block.lines)]
    room = width - sum(1 + max(map(len, column)) for column in zip(*rows, strict=True))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column(block.heading, overflow="fold")
    for column in block.columns:
        table.add_column(column, justify="right", no_wrap=True)
    for line in block.lines:
        cells = [cell if room >= LABEL_WIDTH else cell.replace(" ± ", "±") for cell in line.cells]
        table.add_row(*map(Text, [line.label, *cells]), style="" if line.complete else "dim")
        if line.paper:
            table.add_row(*map(Text, [f"  {PAPER}", *line.paper]), style="italic")
    return table


def markdown(results: dict[str, Any], notes: str = "", choices: Sequence[Mapping[str, Any]] = ()) -> str:
    """The table and the comparisons, with the experiment's notes and choices of settings, as markdown."""
    seeds = seeds_text(results["seeds"])
    many = len(results["seeds"]) > 1
    about = f"Mean ± standard deviation over {seeds}." if many else f"A single run of each row, {seeds}."
    lines = [f"# {_escaped(title(results))}", "", about]
    notice = missing(results)
    lines += ["", f"**{_escaped(notice)}**"] if notice else []
    for block in blocks(results):
        lines += ["", _markdown_row([block.heading, *block.columns])]
        lines += [_markdown_row(["---", *["---:"] * len(block.columns)])]
        for line in block.lines:
            lines.append(_markdown_row([line.label, *line.cells]))
            lines += [_markdown_row([PAPER, *line.paper])] if line.paper else []
        lines += ["", *(f"- {_escaped(finding)}" for finding in block.findings)] if block.findings else []
        lines += _markdown_seeds(block, results["seeds"])
    lines += ["", _escaped(note)] if (note := about_differences(results)) else []
    lines += ["", _escaped(notes)] if notes else []
    if choices:
        lines += ["", _markdown_row(["setting", "value", "reason"]), _markdown_row(["---"] * 3)]
        for one in choices:
            value = one["value"] if isinstance(one["value"], str) else json.dumps(one["value"])
            lines.append(_markdown_row([one["name"], value, one["reason"]]))
    return "\n".join(lines) + "\n"


def _markdown_seeds(block: Block, seeds: Sequence[int]) -> list[str]:
    lines = [line for line in block.lines if line.by_seed]
    if not lines:
        return []
    head = [f"{block.columns[0]} by seed", *map(str, seeds)]
    rows = [head, ["---", *["---:"] * len(seeds)], *([line.label, *line.by_seed] for line in lines)]
    return ["", *map(_markdown_row, rows)]


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(text: str) -> str:
    return re.sub(r"([\\|*_<`])", r"\\\1", text)
