"""Scores of one or several files of masks on the same images."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sp_fast.proposals.ranked import RankedMasks, common_names, read_ranked
from sp_fast.proposals.recall import Recall, measure_recall
from sp_fast.proposals.summary import Summary, summarize


@dataclass(frozen=True)
class FileScores:
    """The scores of a file.

    Attributes:
        label: name of the file, or its path where two files have the same name.
        masks: the masks.
        summary: what needs no annotations.
        recall: what the masks find; None without annotations.
    """

    label: str
    masks: RankedMasks
    summary: Summary
    recall: Recall | None


@dataclass(frozen=True)
class Comparison:
    """The scores of several files.

    Attributes:
        names: file names of the images that all files have, the annotations too; only these count.
        files: the scores of each file.
        objects: the annotated objects; None without annotations.
    """

    names: list[str]
    files: list[FileScores]
    objects: RankedMasks | None

    def as_json(self) -> dict[str, Any]:
        """The scores as values for JSON, of which some are NaN or arrays."""
        files = [
            {"file": one.label, **asdict(one.summary)}
            | ({} if one.recall is None else _recall_as_json(one.recall))
            for one in self.files
        ]
        annotated = {} if self.objects is None else {"images_annotated": len(self.objects.images)}
        return {"images": len(self.names), **annotated, "files": files}


def compare(
    files: Sequence[str | os.PathLike[str]],
    annotations: str | os.PathLike[str] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
    check: Callable[[list[str]], None] | None = None,
) -> Comparison:
    """Score files of masks, against annotations if there are any; all in COCO format, crowds left out.

    Images are matched by `file_name`, and only those that are in all files count.

    Args:
        files: one file or more.
        annotations: annotated objects.
        progress: called with (images done, all images) after each image of each file.
        check: called with the names of the images that count, before they are scored.

    Raises:
        FileNotFoundError, ValueError: see `load_coco` and `common_names`.
    """
    paths = [Path(path) for path in files]
    read = {str(path): read_ranked(path) for path in paths}
    objects = None if annotations is None else read_ranked(annotations)
    names = common_names(read if objects is None else {**read, str(annotations): objects})
    if check is not None:
        check(names)
    alike = len({path.name for path in paths}) < len(paths)
    steps = len(read) * (1 if objects is None else 2)

    def counted(step: int) -> Iterator[str]:
        for k, name in enumerate(names, start=1):
            yield name
            progress(step * len(names) + k, steps * len(names))

    scores = []
    for k, path in enumerate(dict.fromkeys(paths)):
        masks = read[str(path)]
        step = k * steps // len(read)
        summary = summarize(masks, counted(step))
        recall = None if objects is None else measure_recall(masks, objects, counted(step + 1))
        scores.append(FileScores(str(path) if alike else path.name, masks, summary, recall))
    return Comparison(names, scores, objects)


def _recall_as_json(recall: Recall) -> dict[str, Any]:
    orders = {"above_half": recall.above_half, "mean_best_iou": recall.mean_best_iou}
    return {
        "average_recall": recall.average_recall,
        "coverage": asdict(recall)["coverage"],
        "by_rank": {name: one._asdict() for name, one in orders.items()},
        "by_image": {name: one._asdict() for name, one in recall.by_image.items()},
    }
