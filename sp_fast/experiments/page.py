"""The report as one HTML page that needs nothing else: no network, no script, pictures inside."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from sp_fast.experiments.curves import INK, panels, style, svg
from sp_fast.experiments.experiment import PRETRAIN
from sp_fast.experiments.pictures import BEST, Strip, prediction_samples, proposal_samples
from sp_fast.experiments.plan import Plan, Run
from sp_fast.experiments.table import TEST, blocks, in_order, missing, seeds_text, training_heading
from sp_fast.progress import clock

TEMPLATE = Path(__file__).with_name("page.html")


@dataclass
class Step:
    """Runs that do the same, but for the seed and what they start from.

    Attributes:
        name: `pseudo labels`, `pre-training` or `fine-tuning on ...`.
        settings: what they do, as lines of text.
        rows: names of the rows that use them.
        runs: by key.
    """

    name: str
    settings: list[str]
    rows: list[str] = field(default_factory=list)
    runs: dict[str, Run] = field(default_factory=dict)

    def finished(self) -> list[Run]:
        """The runs that are finished."""
        return [run for run in self.runs.values() if run.finished]


def page(plan: Plan, results: dict[str, Any], times: dict[str, Any], command: str) -> str:
    """The page's HTML.

    Args:
        plan: the runs, whose folders hold masks and predictions.
        results: as :func:`sp_fast.experiments.results.collect` gives them.
        times: as :func:`sp_fast.experiments.results.read_times` gives them.
        command: the command line that made it.
    """
    environment = Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    rows = list(results["rows"])
    steps = _steps(plan)
    return environment.from_string(TEMPLATE.read_text()).render(
        results=results,
        seeds=seeds_text(plan.seeds),
        test=TEST if results["comparisons"] else "",
        notes=plan.experiment.notes,
        missing=missing(results),
        blocks=blocks(plan.experiment, results),
        keys={name: _key(rows.index(name)) for name in rows},
        curves=[Markup(svg(panel, rows)) for panel in panels(results)],
        coverage=_coverage(steps, results),
        best=BEST,
        proposals=proposal_samples(_proposals(steps), plan.experiment.samples),
        predictions=list(_predictions(plan, results)),
        steps=[(step, _time_per_run(step, times)) for step in steps],
        data=_data(steps),
        environments=_environments(times),
        total=clock(sum(entry["seconds"] for entry in times.values())),
        command=command,
    )


def _key(position: int) -> dict[str, str]:
    """CSS colour and border style that stand for a row, as in the curves."""
    colour, _ = style(position)
    borders = ("solid", "dashed", "dotted")
    return {"colour": "currentColor" if colour == INK else colour, "border": borders[position // 8 % 3]}


def _steps(plan: Plan) -> list[Step]:
    """All steps: pseudo labels, pre-trainings, fine-tunings; those with equal settings are one."""
    found: dict[str, Step] = {}

    def add(name: str, row: str, run: Run | None) -> None:
        if run is not None:
            step = found.setdefault(f"{name} {json.dumps(run.spec)}", Step(name, _settings(run)))
            step.runs[run.key] = run
            step.rows += [row] if row not in step.rows else []

    for training in ("proposals", *plan.experiment.trainings):
        for row in plan.experiment.rows:
            for seed in plan.seeds:
                if training == "proposals":
                    add("pseudo labels", row.name, plan.proposals_of(row.name, seed))
                else:
                    name = "pre-training" if training == PRETRAIN else f"fine-tuning on {training}"
                    add(name, row.name, plan.of(row.name, training, seed))
    return list(found.values())


def _settings(run: Run) -> list[str]:
    spec = run.spec
    if run.kind == "train":
        pairs = {"config": spec["config"], "steps": spec["steps"] or "as in the config"}
    elif spec["kind"] == "saliency":
        backbone = {f"backbone {name}": value for name, value in spec["backbone"].items()}
        pairs = {"kind": "saliency", **backbone, "image size": spec["size"] or "as it is"}
    else:
        pairs = {"kind": spec["kind"]}
    pairs |= spec["options"]
    return [f"{name} = {_short(value)}" for name, value in pairs.items()] + list(spec.get("arguments", ()))


def _short(value: Any) -> str:
    """The value as text; of a path outside the experiment the end alone, which says what it is."""
    return _place(value) if isinstance(value, str) and value.startswith("/") else str(value)


def _place(path: str) -> str:
    return "/".join(Path(path).parts[-2:]) if path.startswith("/") else path


def _proposals(steps: Sequence[Step]) -> dict[str, Run]:
    """The first finished run of each kind of pseudo labels, by a label."""
    kinds = [step for step in steps if step.name == "pseudo labels" and step.finished()]
    return {_rows_label(step): step.finished()[0] for step in kinds}


def _rows_label(step: Step) -> str:
    run = next(iter(step.runs.values()))
    kind = "saliency masks" if run.spec["kind"] == "saliency" else "random boxes"
    return f"{kind} of {', '.join(step.rows)}"


def _coverage(steps: Sequence[Step], results: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """Label, and cells: masks per image, then mean best IoU and share above 0.5 by size of object."""
    found = []
    for step in steps:
        scores = list(results["rows"][step.rows[0]]["proposals"].values())
        if step.name != "pseudo labels" or not scores:
            continue
        cells = [f"{_mean([one['masks_per_image'] for one in scores]):.1f}"]
        for size in ("all", "small", "medium", "large"):
            own = [one["by_size"][size] for one in scores if one["by_size"][size]["objects"]]
            iou, above = (_mean([one[name] for one in own]) for name in ("mean_best_iou", "above_half"))
            cells.append(f"{iou:.2f} ({above:.0%})" if own else "-")
        found.append((_rows_label(step), cells))
    return found


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(len(values), 1)


def _predictions(plan: Plan, results: dict[str, Any]) -> Iterator[tuple[str, list[tuple[Strip, str]]]]:
    """Heading of each training, and its strips with the value of the run that is shown."""
    metric, heading = next(iter(plan.experiment.metrics.items()))
    for training in in_order(plan.experiment.trainings):
        strips = []
        for strip in prediction_samples(plan, training):
            value = None
            if strip.row is not None:
                summary = results["rows"][strip.row]["trainings"][training]["summary"]
                value = summary.get(metric, {}).get("values", {}).get(str(strip.seed))
            strips.append((strip, "" if value is None else f"{heading} {value:.1f}"))
        if strips:
            seed = f", seed {strips[-1][0].seed}" if len(plan.seeds) > 1 else ""
            yield training_heading(training) + seed, strips


def _time_per_run(step: Step, times: dict[str, Any]) -> str:
    seconds = [times[key]["seconds"] for key in step.runs if key in times]
    return clock(_mean(seconds)) if seconds else "-"


def _data(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Each set of images and annotations once, by their hashes."""
    found: dict[str, dict[str, Any]] = {}
    for step in steps:
        for run in step.finished():
            data = run.result()["data"]
            parts = {"": data} if run.kind == "proposals" else data
            for part, prints in parts.items():
                images = run.spec["val_images" if part == "validation" else "images"]
                hashes = [prints["listing_sha256"], prints.get("annotations_sha256")]
                entry = {"folder": _place(images), "images": prints["images"], "hashes": hashes}
                found.setdefault(json.dumps(entry, sort_keys=True), entry)
    return list(found.values())


def _environments(times: dict[str, Any]) -> list[dict[str, Any]]:
    """Runs and seconds by device and versions."""
    found: dict[tuple, dict[str, Any]] = {}
    for entry in times.values():
        names = ("device", "threads", "torch", "python")
        own = found.setdefault(
            tuple(entry[name] for name in names),
            {**{name: entry[name] for name in names}, "runs": 0, "seconds": 0.0},
        )
        own["runs"] += 1
        own["seconds"] += entry["seconds"]
    return [{**entry, "time": clock(entry["seconds"])} for entry in found.values()]
