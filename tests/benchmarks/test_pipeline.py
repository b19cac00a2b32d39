"""`make bench-pipeline` at small sizes: its parts, its counts, and its table."""

import dataclasses
import math

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")

from benchmarks.pipeline.__main__ import PARTS, function_of
from benchmarks.pipeline.loading import bytes_of
from benchmarks.pipeline.rows import Row, Sizes, Task, medians
from benchmarks.pipeline.table import Run, markdown, terminal

SMALL = Sizes(image=(96, 160), batch=2, masks=3, batches=1, steps=1, proposed=2, repeats=1)
ROWS = [
    Row("Loader", "worker, ms per image", 25.0, 4.0, "decoding", goal=10),
    Row("Steps", "demo", 2.0),
    Row("Loader", "pickled, MB per image", 0.0),
]


def run(values, **changed):
    """A run with these values."""
    rows = [Row("", name, value) for name, value in values.items()]
    made = Run.of(rows, SMALL, "made up")
    return dataclasses.replace(made, **{"processor": "A", "values": values, **changed})


@pytest.mark.parametrize("part", ["loader", "losses", "deformable", "propose_mobilenet_v2", "step_demo"])
def test_a_part_measures_all_its_rows(part, tmp_path):
    rows = function_of(part)(Task(SMALL, tmp_path))
    assert rows
    for row in rows:
        assert math.isfinite(row.value)
        assert len(row.name) <= 33
    assert any(row.value > 0 for row in rows)


def test_medians_over_turns():
    runs = [
        [Row("Steps", "demo", value, floor, goal=goal)]
        for value, floor, goal in ((9, 1, 5), (2, 3, 7), (4, 2, 6))
    ]
    assert medians(runs) == [Row("Steps", "demo", 4, 2, goal=6)]
    assert medians([[Row("Steps", "demo", 4)]]) == [Row("Steps", "demo", 4)]


def test_every_part_has_a_function():
    assert all(callable(function_of(part)) for part in PARTS)


def test_bytes_of_a_batch():
    array, tensor = np.zeros(10_000, np.uint8), torch.zeros(5_000, dtype=torch.uint8)
    pickled, shared = bytes_of([array, tensor, tensor[:100]])
    assert 10_000 < pickled < 12_000
    assert shared == 5_000


def test_the_table_has_80_columns_and_ratios():
    before = run({ROWS[0].key: 100.0, ROWS[2].key: 17.0})
    text = terminal(ROWS, run({}), before)
    assert max(map(len, text.splitlines())) <= 80
    (line,) = (line for line in text.splitlines() if "worker" in line)
    assert line.split()[-6:] == ["100", "25", "4.00", "4", "10", "over"]
    assert "| worker, ms per image | 100 | 25 | 4.00 | 4 | 10 over | decoding |" in markdown(
        ROWS, run({}), before
    )
    assert text.count("Loader") == 1


@pytest.mark.parametrize(
    ("goals", "before", "said"),
    [
        ({"goal": 10}, 99.0, "10 met"),
        ({"goal": 5}, 99.0, "5 over"),
        ({"times": 1.25}, 12.5, "1.25x met"),
        ({"times": 1.25}, 12.4, "1.25x low"),
        ({"times": 1.25}, None, "1.25x"),
    ],
)
def test_goals_are_met_or_not(goals, before, said):
    row = Row("Steps", "demo", 10.0, **goals)
    text = terminal([row], run({}), None if before is None else run({row.key: before}))
    (line,) = (line for line in text.splitlines() if line.startswith("  demo"))
    assert line.endswith(f" {said}")
    assert len(line) <= 80


def test_runs_that_cannot_be_compared_say_so():
    assert "there is no earlier run" in terminal(ROWS, run({}), None)
    assert "processor B, after: A" in terminal(ROWS, run({}), run({}, processor="B"))


def test_a_file_keeps_runs_of_both_kinds_of_images(tmp_path):
    path = tmp_path / "before.json"
    run({"a": 1.0}).write(path)
    run({"b": 2.0}).write(path)
    run({"a": 3.0}, pixels="photographs").write(path)
    assert Run.read(path, "made up") == run({"a": 1.0, "b": 2.0})
    assert Run.read(path, "photographs") == run({"a": 3.0}, pixels="photographs")
    assert Run.read(path, "other") is None
