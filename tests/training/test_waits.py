"""A training step waits for a GPU no more often than it has to match; see tests/training/count_waits.py."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("mmdet")


@pytest.mark.parametrize(("family", "allowed"), [("knet", 1), ("queryinst", 6), ("mask2former", 7)])
def test_a_step_waits_no_more_often_than_it_has_to_match(family, allowed, tmp_path):
    command = [sys.executable, "-m", "tests.training.count_waits", family, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for kind, steps in json.loads(done.stdout.splitlines()[-1]).items():
        assert len(steps) == 2, kind
        for step in steps:
            assert 1 <= sum(step.values()) <= allowed, (kind, step)
