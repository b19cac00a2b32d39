"""Definition of an experiment in plain values, which can be hashed and stored."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sp_fast.experiments.figures import Figure

PRETRAIN = "pretrain"
KINDS = ("saliency", "random_boxes")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Proposals:
    """Settings of pseudo labels. Paths may hold `{data}`, the folder that `prepare` filled, and `{seed}`.

    Attributes:
        images: folder of images.
        kind: `saliency` or `random_boxes`.
        backbone: arguments of `build_backbone`: `name`, `weights`, `style`, ...
        size: size of the images, see `propose_folder`.
        options: arguments of `SaliencyProposer` or `write_random_boxes`.
        truth: COCO annotations to measure the proposals against; never used for training.
    """

    images: str
    kind: str = "saliency"
    backbone: Mapping[str, Any] = field(default_factory=lambda: {"name": "random"})
    size: int | tuple[int, int] | None = 640
    options: Mapping[str, Any] = field(default_factory=dict)
    truth: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {self.kind!r}")


@dataclass(frozen=True)
class Training:
    """One run of `sp-fast train`. Paths may hold `{data}` and `{seed}`.

    Attributes:
        config: name or file of the config.
        images: folder of the training images.
        annotations: COCO annotations; None in pre-training to use the row's proposals.
        val_images: folder of the validation images; None for no evaluation.
        val_annotations: COCO annotations of the validation images.
        steps: number of steps, to which the config's schedule is scaled; None for the config's length.
        epochs: length in epochs instead of steps.
        options: entries of the config to override, like `--cfg-options`.
        arguments: further arguments of `sp-fast train`, such as `--class-agnostic`.
    """

    config: str
    images: str
    annotations: str | None = None
    val_images: str | None = None
    val_annotations: str | None = None
    steps: int | None = None
    epochs: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    arguments: Sequence[str] = ()


@dataclass(frozen=True)
class Analysis:
    """A run that calls a function to measure or compute something, from a trained model or from files.

    The function is called as `function(folder, trained, **options)` with the run's folder, in which it may
    write files, and the folder of the training `after` (None without one). It returns the run's result, a
    dict of JSON values; values under `evaluations` ([{"step": 0, metric: value}]) are part of the table.

    Attributes:
        function: the function, as `package.module:name`.
        after: name of the row's training whose model it takes, such as `pretrain`.
        options: keyword arguments of the function. Paths may hold `{data}` and `{seed}`.
    """

    function: str
    after: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: short name for `--rows` and folders.
        label: description for tables.
        proposals: pseudo labels of the pre-training; None if its config makes them or it has annotations.
        pretrain: pre-training, or None.
        finetune: fine-tunings by a short name of their data, such as `10 %`.
        analyses: further measurements and computations by a short name.
        expected: published values in percent by training or analysis: a dict by metric, with None where there
            is no value, or a number for the first metric.
        start: name of an analysis after `pretrain` that writes the `pretrained.pth` which fine-tuning starts
            from; None: pre-training's.
    """

    name: str
    label: str
    proposals: Proposals | None = None
    pretrain: Training | None = None
    finetune: Mapping[str, Training] = field(default_factory=dict)
    analyses: Mapping[str, Analysis] = field(default_factory=dict)
    expected: Mapping[str, float | Mapping[str, float | None]] = field(default_factory=dict)
    start: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name: expected letters, digits, '-', '_' and '.', got {self.name!r}")
        if not (self.trainings or self.analyses):
            raise ValueError(f"row {self.name}: expected pre-training, fine-tuning or an analysis, got none")
        unknown = [one.after for one in self.analyses.values() if one.after not in (None, *self.trainings)]
        if unknown:
            raise ValueError(
                f"row {self.name}: after: expected one of {[*self.trainings]}, got {unknown[0]!r}"
            )
        starts = [name for name, one in self.analyses.items() if one.after == PRETRAIN]
        if self.start not in (None, *starts):
            known = ", ".join(starts) or "none here"
            raise ValueError(
                f"row {self.name}: start: expected an analysis after {PRETRAIN} ({known}), got {self.start!r}"
            )

    @property
    def trainings(self) -> dict[str, Training]:
        """All trainings by name, beginning with `pretrain`."""
        return {**({PRETRAIN: self.pretrain} if self.pretrain else {}), **self.finetune}


@dataclass(frozen=True)
class Comparison:
    """Names of two rows to compare, paired by seed, and the claim that the first is higher."""

    first: str
    second: str
    claim: str


@dataclass(frozen=True)
class Experiment:
    """Rows that are trained and measured in the same way.

    Attributes:
        name: short name.
        title: what is compared, for headings.
        rows: rows of the table, in order.
        metrics: name of each measured value -> heading of its column. Values are shown in percent; curves
            and comparisons show the first.
        seeds: default random seeds.
        comparisons: pairs of rows to compare.
        prepare: function that fills a folder, `{data}` in paths, with data for a seed.
        data_per_seed: whether `prepare` makes different data for each seed.
        notes: remarks about the numbers, for the report.
        samples: number of images whose predictions the page shows.
        settings: what was chosen, each with a `name`, a `value` and a `reason`, for the report.
        command: the command that runs it, if not `sp-fast experiment run`.
        figures: figures that the report draws.
        inputs: files and folders of `--data-root` that runs may need -> how to get each. Those
            that are needed are checked before the first run.
    """

    name: str
    title: str
    rows: Sequence[Row]
    metrics: Mapping[str, str]
    seeds: Sequence[int] = (0,)
    comparisons: Sequence[Comparison] = ()
    prepare: Callable[[Path, int], None] | None = None
    data_per_seed: bool = False
    notes: str = ""
    samples: int = 4
    settings: Sequence[Mapping[str, Any]] = ()
    command: str = ""
    figures: Sequence[Figure] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        names = [row.name for row in self.rows]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"rows: expected at least one, with names that differ, got {names}")
        if not self.metrics:
            raise ValueError("metrics: expected at least one, such as {'coco/segm_mAP': 'AP'}, got none")
        for one in self.comparisons:
            unknown = {one.first, one.second} - set(names)
            if unknown:
                raise ValueError(f"comparisons: expected rows {', '.join(names)}, got {', '.join(unknown)}")

    @property
    def trainings(self) -> list[str]:
        """Names of all trainings, beginning with `pretrain`."""
        return list(dict.fromkeys([PRETRAIN, *(name for row in self.rows for name in row.finetune)]))

    def chosen(self, names: Sequence[str] | None) -> list[str]:
        """Checks names of rows; returns those of all rows for None.

        Raises:
            ValueError: unknown name.
        """
        known = [row.name for row in self.rows]
        unknown = [name for name in names or () if name not in known]
        if unknown:
            raise ValueError(f"--rows: expected some of {', '.join(known)}, got {', '.join(unknown)}")
        return known if names is None else list(names)
