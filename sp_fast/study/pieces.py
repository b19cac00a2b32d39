"""The pieces of a study: what is finished, what is left, and how long that will take."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sp_fast.study.variants import VARIANTS

RESULT = "result.json"
PERCENTS = (10, 100)


@dataclass(frozen=True)
class Piece:
    """A run of training; its folder has `result.json` once it is finished.

    Attributes:
        seed, variant: what it is of.
        kind: `pretrain`, `finetune-10` or `finetune-100`.
        folder: of its checkpoint and result.
    """

    seed: int
    variant: str
    kind: str
    folder: Path

    @property
    def name(self) -> str:
        """For people."""
        what = "pre-training" if self.kind == "pretrain" else f"fine-tuning on {self.percent} %"
        return f"seed {self.seed}, {VARIANTS[self.variant].title}: {what}"

    @property
    def percent(self) -> int:
        """Of the labels, in fine-tuning."""
        return int(self.kind.removeprefix("finetune-"))

    @property
    def finished(self) -> bool:
        """Whether its result is there."""
        return (self.folder / RESULT).is_file()

    def result(self) -> dict[str, Any]:
        """What it gave."""
        return json.loads((self.folder / RESULT).read_text())


def all_pieces(out: Path, variants: Sequence[str], seeds: Sequence[int]) -> list[Piece]:
    """All of them, seed by seed, so that few seeds are complete before many are begun."""
    pieces = []
    for seed in seeds:
        for variant in variants:
            kinds = [f"finetune-{percent}" for percent in PERCENTS]
            if VARIANTS[variant].proposals is not None:
                kinds.insert(0, "pretrain")
            folder = out / f"seed{seed}" / variant
            pieces += [Piece(seed, variant, kind, folder / kind) for kind in kinds]
    return pieces


def seconds_left(pieces: Sequence[Piece]) -> float | None:
    """What is left at the speed of what is finished; None before a piece of each kind left is."""
    took: dict[str, list[float]] = {}
    for piece in pieces:
        if piece.finished:
            took.setdefault(_length(piece), []).append(piece.result()["wall_seconds"])
    left = [_length(piece) for piece in pieces if not piece.finished]
    if any(length not in took for length in left):
        return None
    return sum(statistics.mean(took[length]) for length in left)


def _length(piece: Piece) -> str:
    return "pretrain" if piece.kind == "pretrain" else "finetune"
