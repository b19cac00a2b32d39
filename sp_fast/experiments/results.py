"""The numbers of an experiment: those of all finished runs, put together."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from sp_fast.experiments.experiment import Experiment
from sp_fast.experiments.plan import Plan
from sp_fast.experiments.worker import TIMES
from sp_fast.files import write_json

RESULTS = "results.json"
ALL_TIMES = "times.json"


def collect(plan: Plan) -> dict[str, Any]:
    """All numbers as plain values that depend on the runs alone, not on when and where they were made.

    Values are times 100; spread is the standard deviation over seeds.
    """
    experiment = plan.experiment
    rows: dict[str, Any] = {}
    for row in experiment.rows:
        own: dict[str, Any] = {}
        for name in row.trainings:
            of_seed = {str(seed): plan.of(row.name, name, seed) for seed in plan.seeds}
            finished = {
                seed: run.result() for seed, run in of_seed.items() if run is not None and run.finished
            }
            own[name] = {
                "expected": row.expected.get(name),
                "curves": {seed: _curve(experiment, result) for seed, result in finished.items()},
                "losses": {seed: result["losses"] for seed, result in finished.items()},
                "summary": _summary(experiment, finished),
            }
        rows[row.name] = {"label": row.label, "trainings": own, "proposals": _scores(plan, row.name)}
    runs = list(plan.runs.values())
    return {
        "name": experiment.name,
        "title": experiment.title,
        "metrics": dict(experiment.metrics),
        "seeds": plan.seeds,
        "rows": rows,
        "comparisons": _comparisons(experiment, rows),
        "data": {run.key: run.result()["data"] for run in runs if run.finished and "data" in run.result()},
        "finished": sum(run.finished for run in runs),
        "runs": len(runs),
        "missing": [run.label for run in runs if not run.finished],
    }


def write(plan: Plan) -> dict[str, Any]:
    """Writes `results.json`, and what differs from one time to another to `times.json`."""
    results = collect(plan)
    write_json(read_times(plan), plan.out / ALL_TIMES)
    write_json(results, plan.out / RESULTS)
    return results


def read_times(plan: Plan) -> dict[str, Any]:
    """Seconds, device and versions of each finished run by its key."""
    return {
        run.key: json.loads((run.folder / TIMES).read_text())
        for run in plan.runs.values()
        if run.finished and (run.folder / TIMES).is_file()
    }


def _curve(experiment: Experiment, result: dict[str, Any]) -> list[dict[str, Any]]:
    """The experiment's metrics by step, of 0 to 100; None where there was nothing to measure."""
    return [
        {"step": one["step"], **{name: _percent(one.get(name)) for name in experiment.metrics}}
        for one in result["evaluations"]
    ]


def _percent(value: float | None) -> float | None:
    # COCO's evaluation gives -1 where there are no objects.
    return None if value is None or value < 0 else 100 * value


def _summary(experiment: Experiment, finished: dict[str, Any]) -> dict[str, Any]:
    """Of each metric at the end: its value by seed, the mean and the spread."""
    found = {}
    for name in experiment.metrics:
        last = {seed: _curve(experiment, result)[-1:] for seed, result in finished.items()}
        values = {
            seed: curve[0][name] for seed, curve in last.items() if curve and curve[0][name] is not None
        }
        if values:
            found[name] = {"values": values, **mean_and_spread(values.values())}
    return found


def _scores(plan: Plan, row: str) -> dict[str, Any]:
    """How well the row's pseudo labels cover the objects, by seed."""
    runs = {str(seed): plan.proposals_of(row, seed) for seed in plan.seeds}
    results = {seed: run.result() for seed, run in runs.items() if run is not None and run.finished}
    return {seed: result["scores"] for seed, result in results.items() if "scores" in result}


def mean_and_spread(values: Iterable[float]) -> dict[str, float | None]:
    """Mean and standard deviation, which is None for a single value."""
    values = list(values)
    return {"mean": statistics.mean(values), "spread": statistics.stdev(values) if len(values) > 1 else None}


def _comparisons(experiment: Experiment, rows: dict[str, Any]) -> list[dict[str, Any]]:
    """One row less another, seed by seed, of every metric after every training that both have."""
    found = []
    for one in experiment.comparisons:
        first, second = (rows[name]["trainings"] for name in (one.first, one.second))
        for training in experiment.trainings:
            if training not in first or training not in second:
                continue
            differences = {}
            for metric in experiment.metrics:
                values = [
                    side[training]["summary"].get(metric, {}).get("values", {}) for side in (first, second)
                ]
                each = [
                    values[0][seed] - values[1][seed] for seed in sorted(values[0].keys() & values[1].keys())
                ]
                if each:
                    differences[metric] = {
                        **mean_and_spread(each),
                        "seeds": len(each),
                        "verdict": verdict(each),
                    }
            if differences:
                entry = {"first": one.first, "second": one.second, "claim": one.claim, "training": training}
                found.append({**entry, "metrics": differences})
    return found


def verdict(each: Sequence[float]) -> str:
    """What differences of paired runs say, by Student's t-test at 5 %."""
    if len(each) < 3:
        return f"{len(each)} seed{'s' if len(each) > 1 else ''}: cannot tell"
    from scipy.stats import t as student_t  # takes a second to import

    mean, error = statistics.mean(each), statistics.stdev(each) / len(each) ** 0.5
    if abs(mean) <= student_t.ppf(0.975, len(each) - 1) * error:
        return "within the noise"
    return "higher" if mean > 0 else "lower"
