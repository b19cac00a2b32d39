"""The report as one HTML page that needs nothing else: no network, no script, pictures inside."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from markupsafe import Markup

from sp_fast.experiments.curves import panels, style, svg
from sp_fast.experiments.experiment import PRETRAIN
from sp_fast.experiments.figures.drawn import DrawnFigure
from sp_fast.experiments.pictures import BEST, Strip, prediction_samples, proposal_samples
from sp_fast.experiments.plan import PROPOSALS, Plan, Run
from sp_fast.experiments.table import (
    PAPER,
    Grid,
    about_differences,
    blocks,
    by_class,
    by_size,
    missing,
    seeds_text,
    title,
    training_heading,
    trainings,
)
from sp_fast.experiments.use import Use
from sp_fast.pages import render
from sp_fast.progress import clock

VERSIONS = {
    "torch": "PyTorch",
    "python": "Python",
    "mmdet": "mmdet",
    "sp_fast": "sp_fast",
    "revision": "commit",
}
MANY = 15  # classes in a table; the others are folded


class Step(NamedTuple):
    """Runs by key that differ only in the seed and in what they start from, and the rows that use them."""

    part: str
    spec: dict[str, Any]
    rows: list[str]
    runs: dict[str, Run]

    @property
    def finished(self) -> list[Run]:
        """The runs that are finished."""
        return [run for run in self.runs.values() if run.finished]

    @property
    def scores(self) -> list[dict[str, Any]]:
        """How well proposals cover the objects, for each run where that was measured."""
        return [result["scores"] for run in self.finished if "scores" in (result := run.result())]

    @property
    def name(self) -> str:
        """What the step does; for proposals, which ones."""
        if self.part == PROPOSALS:
            kind = "saliency masks" if self.spec["kind"] == "saliency" else "random boxes"
            return f"{kind} of {', '.join(self.rows)}"
        if "function" in self.spec:
            return f"{self.part} of {', '.join(self.rows)}"
        return "pre-training" if self.part == PRETRAIN else f"fine-tuning on {self.part}"


class Breakdown(NamedTuple):
    """AP and AR after one training by size and by class of the objects."""

    heading: str
    sizes: Grid
    classes: Grid


def page(
    plan: Plan,
    results: dict[str, Any],
    times: dict[str, Any],
    command: str,
    use: Use | None,
    figures: Sequence[DrawnFigure] = (),
) -> str:
    """The page's HTML.

    `plan` gives the folders of masks and predictions, `command` how it was made, `use` what to do with it.
    """
    labels = {name: row["label"] for name, row in results["rows"].items()}
    steps = _steps(plan)
    proposals = [step for step in steps if step.part == PROPOSALS and step.finished]
    breakdowns = _breakdowns(results)
    return render(
        "experiment.html",
        {"clock": clock, "mean": mean, "short": _short, "gigabytes": _gigabytes},
        results=results,
        title=title(results),
        paper=PAPER,
        times=times,
        seeds=seeds_text(plan.seeds),
        test=about_differences(results),
        notes=plan.experiment.notes,
        choices=plan.experiment.settings,
        missing=missing(results),
        blocks=blocks(results),
        figures=figures,
        breakdowns=breakdowns,
        has_classes=any(len(one.classes.lines) > 1 for one in breakdowns),
        many=MANY,
        styles={name: style(position) for position, name in enumerate(labels)},
        curves=[Markup(svg(panel, labels)) for panel in panels(results)],
        coverage={step.name: scores for step in proposals if (scores := step.scores)},
        best=BEST,
        proposals=proposal_samples(
            {step.name: step.finished[0] for step in proposals}, plan.experiment.samples
        ),
        predictions=_predictions(plan, results),
        steps=[(step, [times[key] for key in step.runs if key in times]) for step in steps],
        gpu=any("gpu_memory" in entry for entry in times.values()),
        data=_data(steps),
        environments=_environments(times),
        versions=list(VERSIONS.values()),
        command=command,
        use=use,
    )


def _steps(plan: Plan) -> list[Step]:
    """All steps: proposals, pre-trainings, fine-tunings, analyses; those with equal settings are merged."""
    found: dict[str, Step] = {}
    for (row, part, _), key in plan.parts.items():
        run = plan.runs[key]
        step = found.setdefault(f"{part} {json.dumps(run.spec)}", Step(part, dict(run.spec), [], {}))
        step.runs[key] = run
        if row not in step.rows:
            step.rows.append(row)
    analyses = dict.fromkeys(name for row in plan.experiment.rows for name in row.analyses)
    parts = [PROPOSALS, *plan.experiment.trainings, *analyses]
    return sorted(found.values(), key=lambda step: parts.index(step.part))


def _short(value: Any) -> str:
    """The value as text; only the last two parts of an absolute path."""
    return "/".join(Path(value).parts[-2:]) if str(value).startswith("/") else str(value)


def _predictions(plan: Plan, results: dict[str, Any]) -> dict[str, list[tuple[Strip, str]]]:
    """Heading of each training -> its strips, each with the value of the run that is shown."""
    metric, heading = next(iter(results["metrics"].items()))
    found = {}
    for training in trainings(results):
        strips = []
        for strip in prediction_samples(plan, training):
            summary = results["rows"][strip.row]["trainings"][training]["summary"] if strip.row else {}
            value = summary.get(metric, {}).get("values", {}).get(str(strip.seed))
            strips.append((strip, "" if value is None else f"{heading} {value:.1f}"))
        if strips:
            seed = f", seed {strips[-1][0].seed}" if len(plan.seeds) > 1 else ""
            found[training_heading(training) + seed] = strips
    return found


def _data(steps: list[Step]) -> list[tuple]:
    """Folder, number of images, and hashes of listing and annotations: each set once."""
    found = []
    for run in (run for step in steps for run in step.finished):
        data = run.result().get("data", {})  # analyses have none
        for part, prints in ({"": data} if run.kind == PROPOSALS else data).items():
            folder = _short(run.spec["val_images" if part == "validation" else "images"])
            hashes = prints["listing_sha256"], prints.get("annotations_sha256")
            found.append((folder, prints["images"], *hashes))
    return list(dict.fromkeys(found))


def _environments(times: dict[str, Any]) -> dict[tuple, list[float]]:
    """Device, threads and versions -> seconds of each run."""
    found = defaultdict(list)
    for entry in times.values():
        key = entry["device"], entry["threads"], tuple(entry.get(name) for name in VERSIONS)
        found[key].append(entry["seconds"])
    return found


def _breakdowns(results: dict[str, Any]) -> list[Breakdown]:
    found = [
        Breakdown(training_heading(name), by_size(results, name), by_class(results, name))
        for name in trainings(results)
    ]
    return [one for one in found if one.sizes.lines]


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB"
