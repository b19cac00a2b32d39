"""What an experiment is: plain values, so that it can be stored, compared and read back."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PRETRAIN = "pretrain"
KINDS = ("saliency", "random_boxes")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Proposals:
    """How pseudo labels are made. Paths may hold `{data}`, the folder that `prepare` filled, and `{seed}`.

    Attributes:
        images: folder of images.
        kind: `saliency` for `sp-fast propose`, or `random_boxes`.
        backbone: arguments of :func:`sp_fast.proposals.build_backbone`: `name`, `weights`, `style`, ...
        size: of the images, see :func:`sp_fast.proposals.run.propose_folder`.
        options: arguments of :class:`sp_fast.proposals.SaliencyProposer`, or of
            :func:`sp_fast.proposals.random_boxes.write_random_boxes`.
        truth: annotations in COCO format, to measure how well the proposals cover the objects; never trained
            on.
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
        annotations: their labels in COCO format; None in pre-training, whose labels are the row's proposals.
        val_images: folder of the validation images, or None not to evaluate.
        val_annotations: their labels.
        steps: length, to which the config's schedule is scaled; None: as the config says.
        options: entries of the config to override, as `--cfg-options` does.
        arguments: more options of the command, such as `--class-agnostic` or `--cache ram`.
    """

    config: str
    images: str
    annotations: str | None = None
    val_images: str | None = None
    val_annotations: str | None = None
    steps: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    arguments: Sequence[str] = ()


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: short, for `--rows` and for folders.
        label: what it is, for tables.
        proposals: the pseudo labels of the pre-training; None where its config makes them itself.
        pretrain: None for no pre-training.
        finetune: fine-tuning on each set of labels, by a short name such as `10 %`.
        expected: the paper's value of the first metric after each fine-tuning, where it has one.
    """

    name: str
    label: str
    proposals: Proposals | None = None
    pretrain: Training | None = None
    finetune: Mapping[str, Training] = field(default_factory=dict)
    expected: Mapping[str, float | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"name: expected letters, digits, '-', '_' and '.', got {self.name!r}")
        if self.pretrain is None and not self.finetune:
            raise ValueError(f"row {self.name}: expected pre-training or fine-tuning, got neither")

    @property
    def trainings(self) -> dict[str, Training]:
        """All trainings by name; that of pre-training is `pretrain`."""
        first = {} if self.pretrain is None else {PRETRAIN: self.pretrain}
        return {**first, **self.finetune}


@dataclass(frozen=True)
class Comparison:
    """Two rows that are compared seed by seed.

    Attributes:
        first: name of the row that is expected to be higher.
        second: name of the row it is compared with.
        claim: why, in a few words.
    """

    first: str
    second: str
    claim: str


@dataclass(frozen=True)
class Experiment:
    """Rows that are trained and measured in the same way.

    Attributes:
        name: short.
        title: what is compared, for headings.
        rows: the lines of the table, in order.
        metrics: name of each measured value -> heading of its column; values are shown times 100. The first
            is the one that curves and comparisons show.
        seeds: random seeds that are run unless others are asked for.
        comparisons: pairs of rows.
        prepare: called with a folder and a seed; fills the folder with data, which paths find as `{data}`.
        data_per_seed: whether `prepare` makes other data for each seed.
        notes: what a reader has to know of the numbers, for the page.
        samples: annotated images whose predictions the page shows.
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
        """Names of the trainings that any row has, in order; `pretrain` first."""
        return list(dict.fromkeys(name for row in self.rows for name in (PRETRAIN, *row.finetune)))

    def chosen(self, names: Sequence[str] | None) -> Experiment:
        """The experiment with the named rows alone, in its own order; all of them for None.

        Raises:
            ValueError: an unknown name; lists the known ones.
        """
        if names is None:
            return self
        unknown = [name for name in names if name not in {row.name for row in self.rows}]
        if unknown or not names:
            known = ", ".join(row.name for row in self.rows)
            raise ValueError(f"--rows: expected some of {known}, got {', '.join(unknown) or 'none'}")
        rows = [row for row in self.rows if row.name in names]
        pairs = [one for one in self.comparisons if {one.first, one.second} <= set(names)]
        return dataclasses.replace(self, rows=rows, comparisons=pairs)
