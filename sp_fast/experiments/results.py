"""The numbers of an experiment: those of all finished runs, put together."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sp_fast.experiments.experiment import Experiment, Row
from sp_fast.experiments.plan import PROPOSALS, Plan
from sp_fast.experiments.worker import TIMES
from sp_fast.files import write_json

RESULTS = "results.json"
ALL_TIMES = "times.json"
LEVEL = 0.05  # below which a p-value counts as significant


def collect(plan: Plan) -> dict[str, Any]:
    """All numbers as plain values that depend on the runs alone, not on when and where they were made.

    Values are in percent; spread is the standard deviation over seeds.
    """
    experiment = plan.experiment
    results = {key: run.result() for key, run in plan.runs.items() if run.finished}
    rows: dict[str, Any] = {}
    for row in experiment.rows:
        trainings = {}
        for name in (*row.trainings, *row.analyses):
            finished = _of_row(plan, results, row.name, name)
            measured = any("evaluations" in result for result in finished.values())
            if name in row.trainings or name in row.expected or measured:
                trainings[name] = _of_part(experiment, row, name, finished)
        proposals = _of_row(plan, results, row.name, PROPOSALS)
        scores = {seed: result["scores"] for seed, result in proposals.items() if "scores" in result}
        rows[row.name] = {"label": row.label, "trainings": trainings, "proposals": scores}
    return {
        "name": experiment.name,
        "title": experiment.title,
        "metrics": dict(experiment.metrics),
        "analyses": sorted({name for row in experiment.rows for name in row.analyses}),
        "seeds": plan.seeds,
        "rows": rows,
        "comparisons": _comparisons(experiment, rows),
        "data": {key: result["data"] for key, result in results.items() if "data" in result},
        "finished": len(results),
        "runs": len(plan.runs),
        "missing": [run.label for key, run in plan.runs.items() if key not in results],
    }


def write(plan: Plan) -> dict[str, Any]:
    """Writes `results.json`, and to `times.json` what differs between machines and calls."""
    results = collect(plan)
    write_json(read_times(plan), plan.out / ALL_TIMES)
    write_json(results, plan.out / RESULTS)
    return results


def read_times(plan: Plan) -> dict[str, Any]:
    """Seconds, peak memory, device and versions of each finished run by its key."""
    return {
        run.key: json.loads((run.folder / TIMES).read_text())
        for run in plan.runs.values()
        if run.finished and (run.folder / TIMES).is_file()
    }


def _of_row(plan: Plan, results: dict[str, Any], row: str, part: str) -> dict[str, Any]:
    """Results of the finished runs of a row's proposals or training, by seed."""
    keys = {str(seed): plan.parts.get((row, part, seed)) for seed in plan.seeds}
    return {seed: results[key] for seed, key in keys.items() if key in results}


def _of_part(experiment: Experiment, row: Row, name: str, finished: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a row's training or analysis, from its finished runs' results by seed."""
    expected = row.expected.get(name, {})
    if not isinstance(expected, Mapping):
        expected = {next(iter(experiment.metrics)): expected}
    curves = {seed: _curve(experiment, result) for seed, result in finished.items()}
    steps = {seed: result.get("steps_per_epoch") for seed, result in finished.items()}
    return {
        "expected": dict(expected),
        "curves": curves,
        "losses": {seed: result.get("losses", []) for seed, result in finished.items()},
        "steps_per_epoch": next(filter(None, steps.values()), None),
        "summary": _summary(experiment, curves),
        "details": _details({seed: result.get("details") for seed, result in finished.items()}),
    }


def _curve(experiment: Experiment, result: dict[str, Any]) -> list[dict[str, Any]]:
    """The experiment's metrics by step, in percent; None where there was nothing to measure."""
    return [
        {"step": one["step"], **{name: _percent(one.get(name)) for name in experiment.metrics}}
        for one in result.get("evaluations", [])
    ]


def _percent(value: float | None) -> float | None:
    # COCO's evaluation gives -1 where there are no objects.
    return None if value is None or value < 0 else 100 * value


def _summary(experiment: Experiment, curves: dict[str, Any]) -> dict[str, Any]:
    """The last value of each metric by seed, its mean and its spread."""
    last = {seed: curve[-1] for seed, curve in curves.items() if curve}
    found = {
        name: _over_seeds({seed: one[name] for seed, one in last.items()}) for name in experiment.metrics
    }
    return {name: entry for name, entry in found.items() if entry}


def _details(by_seed: dict[str, dict[str, Any] | None]) -> dict[str, Any]:
    """For each size and each class: number of objects by seed, and the values with mean and spread."""
    found: dict[str, dict[str, dict[str, Any]]] = {"sizes": {}, "classes": {}}
    for part, entries in found.items():
        measured = {seed: one[part] for seed, one in by_seed.items() if one}
        for name in dict.fromkeys(name for one in measured.values() for name in one):
            here = {seed: one[name] for seed, one in measured.items() if name in one}
            headings = [heading for heading in next(iter(here.values())) if heading != "objects"]
            entries[name] = {
                "objects": {seed: one["objects"] for seed, one in here.items()},
                **{
                    heading: _over_seeds({seed: _percent(one[heading]) for seed, one in here.items()})
                    for heading in headings
                },
            }
    return found


def _over_seeds(values: dict[str, float | None]) -> dict[str, Any] | None:
    """The values that there are, by seed, with mean and spread; None if there are none."""
    measured = {seed: value for seed, value in values.items() if value is not None}
    return {"values": measured, **mean_and_spread(measured.values())} if measured else None


def mean_and_spread(values: Iterable[float]) -> dict[str, float | None]:
    """Mean and standard deviation, which is None for a single value."""
    values = list(values)
    return {"mean": statistics.mean(values), "spread": statistics.stdev(values) if len(values) > 1 else None}


def _comparisons(experiment: Experiment, rows: dict[str, Any]) -> list[dict[str, Any]]:
    """One row minus another, paired by seed, for every metric after every training that both have."""
    found = []
    for one in experiment.comparisons:
        for training in experiment.trainings:
            first, second = (
                rows[name]["trainings"].get(training, {}).get("summary", {})
                for name in (one.first, one.second)
            )
            differences = {}
            for metric in (name for name in experiment.metrics if name in first and name in second):
                a, b = first[metric]["values"], second[metric]["values"]
                each = [a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())]
                if each:
                    differences[metric] = {"seeds": len(each), **paired(each)}
            if differences:
                entry = {"first": one.first, "second": one.second, "claim": one.claim, "training": training}
                found.append({**entry, "metrics": differences})
    return found


def paired(each: Sequence[float]) -> dict[str, Any]:
    """Mean of paired differences, their spread and standard error, and what Student's t-test says.

    `error` is None for a single difference, `p` for fewer than three.
    """
    found, mean = mean_and_spread(each), statistics.mean(each)
    error = None if found["spread"] is None else found["spread"] / len(each) ** 0.5
    p = _p_value(mean, error, len(each)) if error is not None and len(each) > 2 else None
    if p is None:
        verdict = f"{len(each)} seed{'s' if len(each) > 1 else ''}: cannot tell"
    elif p > LEVEL:
        verdict = "within the noise"
    else:
        verdict = "higher" if mean > 0 else "lower"
    return {**found, "error": error, "p": p, "verdict": verdict}


def _p_value(mean: float, error: float, count: int) -> float:
    """Two-sided p of a mean of paired differences under no difference."""
    if error == 0:
        return float(mean == 0)
    from scipy.stats import t as student_t  # takes a second to import

    return 2 * float(student_t.sf(abs(mean) / error, count - 1))
