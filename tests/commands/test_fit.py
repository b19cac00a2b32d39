"""`sp-fast fit` as a user calls it: a small one to its end, and bad input."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from typer.testing import CliRunner

from sp_fast.commands import fit as command
from sp_fast.commands.app import app
from sp_fast.data.synthetic import SetOptions, make_set
from sp_fast.experiments import candidates, pace, scheduler
from sp_fast.experiments.plan import Plan
from sp_fast.experiments.settings import Choice
from sp_fast.experiments.store import Source
from sp_fast.files import write_json
from sp_fast.proposals.networks import layers

pytest.importorskip("mmdet")

QUICK = {"size": 64, "pretrain-steps": 1, "finetune-steps": 2, "batch-size": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of scenes and weights."""
    folder = tmp_path_factory.mktemp("fit")
    make_set(folder / "set", SetOptions(size=64, unlabelled=4, labelled=5, validation=1))
    torch.save(layers("mobilenet_v2").state_dict(), folder / "weights.pth")
    return folder


def call(folder, out, *more, **options):
    given = {
        "labels": folder / "set/labelled.json",
        "label-images": folder / "set/labelled",
        "weights": folder / "weights.pth",
        **QUICK,
        **options,
    }
    words = [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]
    images = [str(folder / "set" / name) for name in ("unlabelled", "labelled")]
    return CliRunner().invoke(app, ["fit", *images, "--out", str(out), *words, *more])


@pytest.fixture(scope="module")
def fitted(folder):
    """The folder of a finished fit, and what was printed."""
    with pytest.MonkeyPatch.context() as patch:
        one = {"backbone": {"stage": 3, "padding": "replicate"}, "size": 64, "options": {}}
        patch.setattr(candidates, "CANDIDATES", {"one, coarser": one})
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        result = call(folder, folder / "out")
    assert result.exit_code == 0, result.output
    return folder / "out", result.output


def test_a_model_a_page_and_the_next_commands(fitted):
    out, printed = fitted
    names = {path.name for path in out.iterdir()}
    assert {"model.pth", "results.json", "report.html", "report.md", "settings.json", "data"} <= names
    model = torch.load(out / "model.pth", weights_only=False)
    assert "KNet" in model["meta"]["cfg"]
    assert len(model["meta"]["dataset_meta"]["classes"]) == 8
    results = json.loads((out / "results.json").read_text())
    assert results["finished"] == results["runs"] == 3
    page = (out / "report.html").read_text()
    for name in ("kernels", "finetune_steps", "proposals"):
        assert name in printed
        assert f"<td>{name}</td>" in page
    assert "4 labelled, 1 to validate on (held out of the labelled ones)" in printed
    assert "<td>proposals</td><td><code>one, coarser</code></td>" in page
    assert "| proposals | one, coarser |" in (out / "report.md").read_text()
    assert "one, coarser" in printed
    assert "replicate" not in printed
    for name in ("predict", "evaluate", "export"):
        assert f"sp-fast {name} {out / 'model.pth'}" in printed


def test_the_same_command_goes_on_and_another_is_refused(fitted, folder):
    out, _ = fitted
    before = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/result.json")}
    assert len(before) == 3
    again = call(folder, out)
    assert again.exit_code == 0, again.output
    assert {path: path.stat().st_mtime_ns for path in out.glob("runs/*/result.json")} == before
    other = call(folder, out, **{"batch-size": 1})
    assert isinstance(other.exception, ValueError)
    assert "holds a fit with other batch_size" in str(other.exception)


def finished_without(out):
    """Puts the results of the row without pre-training, as if an earlier call had trained it."""
    arguments = json.loads((out / "settings.json").read_text())["arguments"]
    plan = Plan(Source("fit", {**arguments, "compare": True}).load(), out, [0])
    name = plan.experiment.trainings[-1]
    shutil.copytree(plan.of("pretrained", name, 0).folder, plan.of("without", name, 0).folder)


def test_a_finished_comparison_stays_in_the_report(fitted, folder, tmp_path):
    out = shutil.copytree(fitted[0], tmp_path / "out", symlinks=True)
    assert "no pre-training" not in (out / "report.md").read_text()
    finished_without(out)
    for more in ((), ("--compare",), ()):
        result = call(folder, out, *more)
        assert result.exit_code == 0, result.output
        for name in ("report.md", "report.html"):
            assert "no pre-training" in (out / name).read_text()
        # One seed cannot tell.
        assert "--compare --seeds 0,1,2: does pre-training help?" in result.output
    write_json(
        {**json.loads((out / "experiment.json").read_text()), "seeds": [0, 1, 2]}, out / "experiment.json"
    )
    result = call(folder, out, "--compare")
    assert "does pre-training help?" not in result.output


@pytest.mark.parametrize(("more", "rows"), [((), ["pretrained"]), (("--compare",), None)])
def test_a_comparison_is_trained_only_where_asked_for(fitted, folder, tmp_path, monkeypatch, more, rows):
    out = shutil.copytree(fitted[0], tmp_path / "out", symlinks=True)
    finished_without(out)
    calls = []
    monkeypatch.setattr(
        command, "run_and_report", lambda *positional, **named: calls.append((positional, named))
    )
    assert call(folder, out, *more).exit_code == 0
    ((_, _, arguments), named) = calls[0]
    assert arguments["compare"]
    assert named["rows"] == rows


@pytest.fixture
def unstarted(monkeypatch):
    """Calls end once the settings are chosen, with these proposals and this pace."""
    proposals = {"name": "one", "backbone": {}, "size": 64, "options": {}, "channels": 96}
    found = Choice("proposals", proposals, "because"), 30.0
    monkeypatch.setattr(candidates, "choose_proposals", lambda *_: found)
    monkeypatch.setattr(pace, "measure_pace", lambda _: pace.Pace(step=0.5, evaluated=0.5, start=8.0))
    monkeypatch.setattr(command, "run_and_report", lambda *_, **__: None)
    monkeypatch.setattr(command, "_print_use", lambda *_: None)


def chosen(out):
    found = json.loads((out / "settings.json").read_text())["arguments"]["settings"]
    return {one[0]: Choice(*one) for one in found}


@pytest.mark.parametrize(
    ("asked", "value", "same", "others"),
    [
        ((), "cosine", [(), ("--prompts",)], [("--no-prompts",)]),
        (("--prompts",), "cosine", [("--prompts",)], [("--no-prompts",), ()]),
        (("--no-prompts",), "none", [("--no-prompts",)], [("--prompts",), ()]),
    ],
)
def test_prompts_are_those_of_the_folder(unstarted, folder, tmp_path, asked, value, same, others):
    out = tmp_path / "out"
    for more in (asked, *same):
        result = call(folder, out, *more)
        assert result.exit_code == 0, result.output
        assert chosen(out)["prompts"].value == value
    for more in others:
        assert "holds a fit with other prompts" in str(call(folder, out, *more).exception)


def test_prompts_of_a_folder_made_while_they_were_off_by_default(unstarted, folder, tmp_path):
    out = tmp_path / "out"
    assert call(folder, out).exit_code == 0
    stored = json.loads((out / "settings.json").read_text())
    settings = stored["arguments"]["settings"]
    settings[:] = [[name, "none" if name == "prompts" else value, why] for name, value, why in settings]
    write_json(stored, out / "settings.json")
    for more in ((), ("--no-prompts",)):
        assert call(folder, out, *more).exit_code == 0
        assert chosen(out)["prompts"].value == "none"
    assert "holds a fit with other prompts" in str(call(folder, out, "--prompts").exception)


def test_time_that_is_spent_counts(unstarted, folder, tmp_path, monkeypatch):
    steps = {"pretrain-steps": None, "finetune-steps": None}
    found = []
    for spent in (0.0, 300.0, 560.0):
        times = iter((1000.0, 1000.0 + spent))
        monkeypatch.setattr(command, "time", SimpleNamespace(monotonic=lambda times=times: next(times)))
        out = tmp_path / f"{spent:g}"
        result = call(folder, out, minutes=10, **steps)
        assert result.exit_code == 0, result.output
        settings = chosen(out)
        length = settings["finetune_steps"].value
        found.append(settings["pretrain_steps"].value + length)
        assert f"each of 4 images is seen {2 * length / 4:.0f} times" in settings["finetune_cache"].reason
        assert ("--minutes 10 cannot be met: 20 steps are the least" in result.output) == (spent == 560)
    assert 0.5 * (found[0] - found[1]) == pytest.approx(pace.SHARE * 300, abs=1)
    assert found[2] == 2 * pace.LEAST


def test_bad_input_leaves_an_earlier_fit(fitted, folder):
    out, _ = fitted
    before = (out / "settings.json").read_bytes()
    result = call(folder, out, "--overwrite", labels=folder / "none.json")
    assert isinstance(result.exception, FileNotFoundError)
    assert (out / "settings.json").read_bytes() == before
    assert (out / "model.pth").is_file()


def test_changed_labels_are_another_fit(fitted, folder):
    out, _ = fitted
    labels = folder / "set/labelled.json"
    before = labels.read_bytes()
    labels.write_bytes(before + b" ")
    try:
        result = call(folder, out)
    finally:
        labels.write_bytes(before)
    assert isinstance(result.exception, ValueError)
    assert "holds a fit with other contents of labels" in str(result.exception)


@pytest.mark.parametrize(("stop", "status"), [(KeyboardInterrupt(), 130), (SystemExit(143), 143)])
def test_an_interruption_says_how_to_go_on(fitted, folder, tmp_path, monkeypatch, stop, status):
    def interrupted(*_, **__):
        raise stop

    monkeypatch.setattr(candidates, "choose_proposals", interrupted)
    monkeypatch.setattr(scheduler, "run_all", interrupted)
    while_choosing, while_running = call(folder, tmp_path / "out"), call(folder, fitted[0])
    assert not (tmp_path / "out").exists()
    for result in (while_choosing, while_running):
        assert result.exit_code == status
        assert "run the same command again" in result.output.lower()


def test_bad_input_is_one_error_and_leaves_nothing(folder, tmp_path):
    out = tmp_path / "out"
    for options, told in (
        ({"weights": None}, "--weights: expected a file of published weights .*https://download.pytorch.org"),
        ({"weights": tmp_path / "none.pth"}, "--weights: expected .* got .*none.pth, which does not exist"),
        ({"labels": tmp_path / "none.json"}, "no such annotation file"),
        ({"model": "yolo"}, "--model: expected one of"),
        ({"minutes": 0}, "--minutes: expected a number above 0"),
        ({"seeds": "x"}, "--seeds: expected comma-separated whole numbers"),
    ):
        result = call(folder, out, **options)
        assert isinstance(result.exception, ValueError | OSError), result.output
        with pytest.raises(type(result.exception), match=f"(?s){told}"):
            raise result.exception
        assert not out.exists()


def test_a_folder_of_something_else_is_not_touched(folder, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for more in ((), ("--overwrite",)):
        result = call(folder, tmp_path, *more)
        assert isinstance(result.exception, FileExistsError)
        result = call(folder, tmp_path / "thesis.txt", *more)
        assert isinstance(result.exception, FileExistsError)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
