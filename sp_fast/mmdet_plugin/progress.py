"""What a run shows on the terminal: one line with the time left, and a table of the measured values."""

from __future__ import annotations

import logging
import math
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.registry import HOOKS
from rich import box
from rich.console import Console
from rich.table import Table

import sp_fast
from sp_fast.mmdet_plugin.hooks import BEST_NAME, EXPORTED_NAME, headline
from sp_fast.mmdet_plugin.step_values import LateHook
from sp_fast.progress import RunProgress, clock
from sp_fast.work_folder import CHECKPOINT

_PACKAGE = str(Path(sp_fast.__file__).parent)
_SIZES = {"s": " small", "m": " medium", "l": " large"}
_SECONDS = 30.0  # between two lines in a log


@HOOKS.register_module()
class ProgressHook(LateHook):
    """Shows steps, speed, time left, the last loss and the last mask AP; at the end, all measured values.

    On a terminal that is one line, in a log file a line every half minute and one after each validation. At
    the end, also the next command.
    mmengine's own log stays in the work folder.
    """

    priority = "LOWEST"

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._lines: dict[str, RunProgress] = {}
        self._shown: RunProgress | None = None
        self._started = 0.0
        self._images = 0
        self._metrics: dict[str, float] = {}
        self._judged = ""
        self._loss = ""

    def close(self) -> None:
        """Removes the line."""
        if self._shown is not None:
            self._shown.__exit__()
            self._shown = None

    def before_train(self, runner: Any) -> None:
        """Starts the clock."""
        self._started = time.monotonic()

    def look(self, runner: Any, step: int, values: Mapping[str, Any]) -> None:
        """Keeps a step's loss."""
        self._loss = f"loss {float(values['loss']):.3f}" if "loss" in values else ""

    def after_train_iter(self, runner: Any, outputs: Mapping[str, Any] | None = None, **_: Any) -> None:
        """Shows a step."""
        super().after_train_iter(runner, outputs)
        note = self._loss
        if not self._console.is_terminal:
            note = ", ".join([*_epoch(runner), *([note] if note else []), f"rate {_rate(runner):.1e}"])
        self._show("steps", runner.iter + 1, runner.max_iters, note + self._judged)

    def before_val_epoch(self, runner: Any) -> None:
        """Leaves the line to the validation."""
        self.close()
        self._images = 0
        self._lines.pop("images", None)

    def after_val_iter(self, runner: Any, outputs: Any = None, **_: Any) -> None:
        """Shows a batch of the validation, on a terminal."""
        self._images += len(outputs or ())
        if self._console.is_terminal:
            self._show("images", self._images, len(runner.val_dataloader.sampler))

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Keeps what was measured, and writes it into a log."""
        self.close()
        self._metrics = dict(metrics or {})
        name = headline(self._metrics)
        if name is None:
            return
        self._judged = f", {label(name)} {percent(self._metrics[name])}"
        if is_main_process() and not self._console.is_terminal:
            text = f"validation after step {runner.iter}{self._judged}"
            self._console.print(text, highlight=False, soft_wrap=True)

    def after_train(self, runner: Any) -> None:
        """Says what came out."""
        super().after_train(runner)
        self.close()
        folder = Path(runner.work_dir)
        names = [name for name in (EXPORTED_NAME, BEST_NAME, CHECKPOINT) if (folder / name).is_file()]
        if is_main_process():
            took = clock(time.monotonic() - self._started)
            print(f"step {runner.iter} of {runner.max_iters} after {took}; in {folder}: {', '.join(names)}")
            _print_table(self._metrics)
            print(f"next: {next_command(folder, names)}")

    def before_test_epoch(self, runner: Any) -> None:
        """Starts counting."""
        self._images = 0

    def after_test_iter(self, runner: Any, outputs: Any = None, **_: Any) -> None:
        """Shows a batch of the evaluation."""
        self._images += len(outputs or ())
        self._show("images", self._images, len(runner.test_dataloader.sampler))

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:
        """Prints what was measured."""
        self.close()
        if is_main_process():
            _print_table(metrics or {})

    def _show(self, what: str, done: int, total: int, note: str = "") -> None:
        if not is_main_process():
            return
        if what not in self._lines:
            self._lines[what] = RunProgress(what, self._console, _SECONDS, transient=True)
        if self._shown is None:  # not before the loader's processes are forked: the line has a thread
            self._shown = self._lines[what].__enter__()
        self._shown(done, total, note)


def quieten(logger: logging.Logger) -> None:
    """Shows warnings and this package's own messages on the terminal; the log files keep all."""
    for handler in logger.handlers:
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(logging.Formatter("%(message)s"))
            handler.addFilter(
                lambda record: record.levelno >= logging.WARNING or record.pathname.startswith(_PACKAGE)
            )


def _epoch(runner: Any) -> list[str]:
    epochs = runner.cfg.train_cfg.get("max_epochs")
    return [f"epoch {runner.iter * epochs // runner.max_iters + 1} of {epochs}"] if epochs else []


def _rate(runner: Any) -> float:
    rates = runner.optim_wrapper.get_lr()
    return rates.get("base_lr", rates["lr"])[0]


def next_command(folder: Path, names: Sequence[str]) -> str:
    """What to do with the files of a finished run."""
    if EXPORTED_NAME in names:
        weights = shlex.quote(str(folder / EXPORTED_NAME))
        return f"sp-fast train CONFIG --load-from {weights} (fine-tunes; sp-fast train --list)"
    return f"sp-fast predict {shlex.quote(str(folder))} IMAGES --out FOLDER"


def percent(value: float) -> str:
    """A share in percent; a dash where there was nothing to measure."""
    return f"{100 * value:.1f}" if math.isfinite(value) and value >= 0 else "-"


def label(name: str) -> str:
    """A metric in words: `coco/segm_mAP_50` is `mask AP50`."""
    row, column = _place(name)
    return f"{column} {row}"


def _place(name: str) -> tuple[str, str]:
    """Row and column of a metric in the table."""
    *groups, last = name.split("/")
    kind, _, measure = last.partition("_")
    kinds = {"segm": "mask", "bbox": "box"}
    column = " ".join(
        [*(group.replace("_", "-") for group in groups if group != "coco"), kinds.get(kind, kind)]
    )
    row = measure.replace("mAP", "AP").replace("iou", "IoU")
    value, _, ending = row.rpartition("_")
    if value in ("AP", "AR"):
        row = value + _SIZES.get(ending, ending)
    return row.replace("_", " "), column


def _print_table(metrics: Mapping[str, float]) -> None:
    places = {_place(name): value for name, value in metrics.items()}
    columns = list(dict.fromkeys(column for _, column in places))
    if not places:
        return
    agnostic = any("agnostic" in column for column in columns)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("in percent")
    for column in columns:
        table.add_column(column, justify="right")
    for row in dict.fromkeys(row for row, _ in places):
        table.add_row(row, *(percent(places.get((row, column), math.nan)) for column in columns))
    console = Console()
    console.print(table)
    if agnostic:
        console.print("class-agnostic: all classes are taken as one")
