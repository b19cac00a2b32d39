"""The files of the data root that an experiment needs before it runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sp_fast.experiments.plan import Plan, Run


def check_inputs(plan: Plan, rows: Sequence[str], seeds: Sequence[int]) -> None:
    """Checks that those of the experiment's `inputs` exist that unfinished runs of these rows need.

    Raises:
        FileNotFoundError: the message names each missing file, how to get it, and the rows that could run.
    """
    missing = missing_inputs(plan, plan.needed(rows, seeds))
    if not missing:
        return
    lines = [f"--data-root: expected all files that the rows {', '.join(rows)} need; missing:"]
    for path, how in missing.items():
        lines += [f"  {path}", f"      {how}"]
    ready = [row for row in rows if not missing_inputs(plan, plan.needed([row], seeds))]
    if ready:
        lines.append(f"Other rows can run without them: --rows {','.join(ready)}")
    raise FileNotFoundError("\n".join(lines))


def missing_inputs(plan: Plan, runs: Sequence[Run]) -> dict[str, str]:
    """The missing files of unfinished runs -> how to get each."""
    known = plan.experiment.inputs
    paths = dict.fromkeys(text for run in runs if not run.finished for text in _texts(run.spec))
    return {path: known[path] for path in paths if path in known and not Path(path).exists()}


def _texts(value: Any) -> Iterator[str]:
    """All strings in a nested dict or list."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
