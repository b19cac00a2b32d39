"""`sp-fast evaluate`: what it prints and writes, and how it fails."""

import json

import pytest

import sp_fast.inference
from sp_fast.commands import app as cli
from tests.evaluation.conftest import results, scenes, truth  # noqa: F401
from tests.evaluation.models import Oracle


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the command in this process; gives its exit status, output and errors."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["sp-fast", "evaluate", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.run()
        return exit_.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def file(results, tmp_path):  # noqa: F811
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    return path


def test_results_are_evaluated_and_confirmed(run, scenes, file, tmp_path):  # noqa: F811
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    options = ["--annotations", scenes / "validation.json", "--images", scenes / "validation", "--out", out]
    status, output, error = run(file, *options, "--confirm")
    assert status == 0, error
    assert "hotcoco and pycocotools agree" in output
    assert sorted(path.name for path in out.iterdir()) == ["evaluation.html", "evaluation.json"]
    written = json.loads((out / "evaluation.json").read_text())
    assert f"{100 * written['masks']['mAP']:.1f}" in output
    before = (out / "evaluation.json").stat().st_mtime_ns

    status, _, error = run(file, *options)
    assert status == 2
    assert "add --overwrite" in error
    assert (out / "evaluation.json").stat().st_mtime_ns == before
    status, _, error = run(file, *options, "--overwrite", "--class-agnostic", "no-categories")
    assert status == 0, error
    assert json.loads((out / "evaluation.json").read_text())["class_agnostic"] == "no_categories"


def test_boxes_are_taken_from_masks(run, scenes, results, tmp_path):  # noqa: F811
    pytest.importorskip("matplotlib")
    values = []
    for k, box in enumerate((None, [0.0, 0.0, 1.0, 1.0])):
        changed = [one if box is None else {**one, "bbox": box} for one in results]
        (tmp_path / "found.json").write_text(json.dumps(changed))
        options = ["--annotations", scenes / "validation.json", "--out", tmp_path / str(k)]
        options += ["--class-agnostic", "no-categories", *(["--boxes-from-masks"] if box else [])]
        status, _, error = run(tmp_path / "found.json", *options, "--confirm")
        assert status == 0, error
        values.append(json.loads((tmp_path / str(k) / "evaluation.json").read_text())["boxes"])
    assert values[0] == values[1]
    assert values[0]["mAP"] > 0.05


def test_a_model_is_evaluated(run, scenes, truth, tmp_path, monkeypatch):  # noqa: F811
    pytest.importorskip("matplotlib")
    model = Oracle(truth, scenes / "validation", lambda name: "object")
    monkeypatch.setattr(sp_fast.inference, "load", lambda path, device: model, raising=False)
    out = tmp_path / "out"
    options = ["--annotations", scenes / "validation.json", "--images", scenes / "validation"]
    status, output, error = run(tmp_path, *options, "--out", out)
    assert status == 0, error
    assert "the model has one class for all objects" in output
    assert "100.0" in output
    assert len(json.loads((out / "results.json").read_text())) == len(truth["annotations"])
    assert "6/6 images" in error


def test_files_of_the_user_are_kept(run, scenes, truth, tmp_path, monkeypatch):  # noqa: F811
    pytest.importorskip("matplotlib")
    model = Oracle(truth, scenes / "validation")
    monkeypatch.setattr(sp_fast.inference, "load", lambda path, device: model, raising=False)
    (tmp_path / "results.json").write_text("mine")
    options = ["--annotations", scenes / "validation.json", "--images", scenes / "validation"]
    status, _, error = run(tmp_path, *options, "--out", tmp_path)
    assert status == 2
    assert "results.json exists; add --overwrite" in error
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
    assert (tmp_path / "results.json").read_text() == "mine"


def test_class_names_that_look_like_markup(run, truth, results, tmp_path):  # noqa: F811
    for one in truth["categories"]:
        one["name"] = f"[/{one['name']}]"
    for name, value in (("truth", truth), ("found", results)):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    status, output, error = run(tmp_path / "found.json", "--annotations", tmp_path / "truth.json")
    assert status == 0, error
    assert truth["categories"][0]["name"] in output


def test_bad_input_is_one_line(run, scenes, file, tmp_path):  # noqa: F811
    annotations = ["--annotations", scenes / "validation.json"]
    for arguments, words in (
        ([tmp_path, *annotations], "--images: expected the folder"),
        ([tmp_path / "none.json", *annotations], "no such file of results"),
        ([file, "--annotations", tmp_path / "none.json"], "no such annotation file"),
        ([file, "--annotations", scenes], "turns labels of YOLO or LabelMe into COCO's"),
        ([scenes / "validation.json", *annotations], "has the score None"),
        ([file, *annotations, "--images", tmp_path / "none"], "no such folder of images"),
    ):
        status, output, error = run(*arguments, "--out", tmp_path / "out")
        assert (status, output) == (2, "")
        assert words in error
        assert len(error.splitlines()) == 1
        assert not (tmp_path / "out").exists()
    status, output, error = run(file, *annotations, "--out", file)
    assert (status, output) == (2, "")
    assert "--out: expected a folder" in error
