"""Reports of made-up runs."""

from pathlib import Path

import pytest

from sp_fast.experiments.plan import Plan
from tests.experiments import made_up


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """The plan of three seeds of the made-up experiment; nothing is finished."""
    images = tmp_path / "images"
    made_up.write_images(images)
    return Plan(made_up.experiment(images), tmp_path / "out", [0, 1, 2])


@pytest.fixture
def finished(plan: Plan, tmp_path: Path) -> Plan:
    """The same with all runs finished."""
    for run in plan.runs.values():
        made_up.finish(plan, run, tmp_path / "images")
    return plan
