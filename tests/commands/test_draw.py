"""`sp-fast draw` and `sp-fast kernels`: what they write, and how they fail."""

import importlib
import json

import pytest

pytest.importorskip("matplotlib")

from PIL import Image

from sp_fast.commands import app as cli
from tests.evaluation.conftest import results, scenes, truth  # noqa: F401
from tests.experiments.test_figures import Bright


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a command in this process; gives its exit status, output and errors."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["sp-fast", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.run()
        return exit_.value.code or 0, *capsys.readouterr()

    return run


def test_masks_are_drawn_and_those_with_low_scores_counted(run, scenes, results, tmp_path):  # noqa: F811
    for k, one in enumerate(results):
        one["score"] = 0.2 if k % 2 else 0.8
    file, out = tmp_path / "results.json", tmp_path / "out.png"
    file.write_text(json.dumps(results))
    options = ["--images", scenes / "validation", "--out", out]
    status, _, error = run("draw", file, *options)
    assert status == 2
    assert "--annotations: expected" in error
    assert not out.exists()
    status, output, error = run("draw", file, *options, "--annotations", scenes / "validation.json")
    assert status == 0, error
    assert f"6 images, {(len(results) + 1) // 2} masks" in output
    assert f"results.json: left out {len(results) // 2} masks with scores below 0.3 (--min-score)" in output
    with Image.open(out) as image:
        assert image.width == 1352

    status, _, error = run("draw", file, "--images", tmp_path / "none", "--out", tmp_path / "b.png")
    assert status == 2
    assert "--images: expected the folder of the images, got" in error

    before = out.read_bytes()
    status, _, error = run("draw", scenes / "validation.json", *options)
    assert status == 2
    assert "add --overwrite" in error
    assert out.read_bytes() == before
    status, output, error = run("draw", scenes / "validation.json", *options, "--count", 1, "--overwrite")
    assert status == 0, error
    assert "1 image, " in output
    assert "left out" not in output
    assert out.read_bytes() != before


def test_scores_of_proposals_have_no_limit(run, scenes, tmp_path):  # noqa: F811
    coco = json.loads((scenes / "validation.json").read_text())
    for one in coco["annotations"]:
        one["score"] = 0.1
    file, count = tmp_path / "masks.json", len(coco["annotations"])
    options = ["--images", scenes / "validation", "--out", tmp_path / "out.png", "--overwrite"]
    file.write_text(json.dumps({**coco, "info": {"seeds_sha256": "as in a file of sp-fast propose"}}))
    assert f"6 images, {count} masks" in run("draw", file, *options)[1]
    _, output, _ = run("draw", file, *options, "--min-score", 0.2)
    assert "6 images, 0 masks" in output
    assert "masks.json: no masks drawn, since all scores are below 0.2; --min-score 0 draws all" in output
    file.write_text(json.dumps(coco))
    assert "since all scores are below 0.3" in run("draw", file, *options)[1]
    assert f"6 images, {count} masks" in run("draw", file, *options, "--min-score", 0)[1]


def test_a_wrong_folder_of_images_is_named(run, scenes, tmp_path):  # noqa: F811
    options = ["--images", tmp_path, "--out", tmp_path / "out.png"]
    status, _, error = run("draw", scenes / "validation.json", *options)
    assert status == 2
    assert f"--images: none of the 6 images to draw is in {tmp_path}: expected files such as " in error


@pytest.mark.parametrize("command", ["draw", "kernels"])
def test_pictures_are_png_files(run, command, scenes, tmp_path):  # noqa: F811
    path = scenes / "validation.json"
    status, _, error = run(command, path, "--images", scenes / "validation", "--out", tmp_path / "a.jpg")
    assert status == 2
    assert "--out: expected a name that ends with .png" in error


def test_maps_of_kernels_are_drawn_for_each_model(run, scenes, tmp_path, monkeypatch):  # noqa: F811
    first, second, out = tmp_path / "a.pth", tmp_path / "b.pth", tmp_path / "maps.png"
    first.touch()
    options = ["--images", scenes / "validation", "--out", out, "--limit", 2]
    status, _, error = run("kernels", first, second, *options)
    assert status == 2
    assert f"got {second}" in error
    second.touch()
    module = importlib.import_module("sp_fast.inference.load")  # the package has a function of this name
    monkeypatch.setattr(module, "load", lambda path, device: Bright())
    status, output, error = run("kernels", first, second, *options)
    assert status == 0, error
    assert "2 models, 2 images" in output
    assert "2/2 images" in error
    with Image.open(out) as image:
        assert image.width == 1352
