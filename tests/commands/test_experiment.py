"""What `sp-fast experiment` says to bad input; nothing is run."""

import pytest
from typer.testing import CliRunner

from sp_fast.commands.app import app

pytest.importorskip("mmdet")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["run", "nothing", "--out", "out"], r"expected demo, .* or a Python file, got 'nothing'"),
        (["run", "demo", "--out", "out", "--rows", "x"], "--rows: expected some of scratch, pseudo_labels"),
        (["run", "demo", "--out", "out", "--seeds", "x"], "--seeds: expected comma-separated whole numbers"),
        (["run", "demo", "--out", "out", "--minutes", "0"], "--minutes: expected a number above 0"),
        (["run", "table5", "--out", "out"], "--data-root: the experiment table5 needs it"),
        (["status", "out"], r"expected the --out folder of `sp-fast experiment run`"),
        (["report", "out"], r"expected the --out folder of `sp-fast experiment run`"),
    ],
)
def test_bad_input_is_one_error_that_names_it(arguments, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["experiment", *arguments])
    assert isinstance(result.exception, ValueError | OSError)
    with pytest.raises(type(result.exception), match=told):
        raise result.exception
    assert not list(tmp_path.iterdir())


def test_the_demo_takes_seeds_and_minutes_as_experiment_run_does(monkeypatch):
    given = []
    monkeypatch.setattr(
        "sp_fast.commands.demo.run_and_report", lambda *arguments, **options: given.append(options)
    )
    for arguments in ([], ["--seeds", "0,1", "--minutes", "2"], ["--seeds", "x"]):
        result = CliRunner().invoke(app, ["demo", *arguments])
    assert given == [{"seeds": [0], "minutes": None}, {"seeds": [0, 1], "minutes": 2.0}]
    assert "--seeds: expected comma-separated whole numbers" in str(result.exception)
