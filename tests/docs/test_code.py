"""The notebook runs, and the example experiment is valid."""

import json

import pytest

from tests.docs.pages import ROOT, block


def test_the_notebook_runs():
    pytest.importorskip("matplotlib").use("Agg")  # no window
    notebook = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text())
    names: dict = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), f"quickstart.ipynb, {cell['id']}", "exec"), names)
    assert names["masks"].any()
    assert names["decorated"].shape == (3, 10, names["features"].shape[1])


def test_the_example_experiment_is_valid():
    pytest.importorskip("mmdet")
    from sp_fast.configs import find_config
    from sp_fast.train import parse_arguments

    names: dict = {}
    exec(
        compile(block(ROOT / "docs" / "experiments.md", "import Comparison"), "experiments.md", "exec"), names
    )
    experiment = names["experiment"]
    assert [row.name for row in experiment.rows] == ["none", "labels", "prompts"]
    for row in experiment.rows:
        for training in row.trainings.values():
            assert find_config(training.config).is_file()
            assert parse_arguments([training.config, *training.arguments]).weights == "mobilenet_v2.pth"
