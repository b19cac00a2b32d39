"""The command `sp-fast predict`: what it prints, and how it fails."""

import importlib
import json
import re
from pathlib import Path

import pytest

from tests.commands.test_propose import Command, folder  # noqa: F401
from tests.inference.components import Components


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capfd)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is loaded as a model of components."""
    # `sp_fast.inference.load` is the function; its module has the same name.
    module = importlib.import_module("sp_fast.inference.load")
    monkeypatch.setattr(module, "load", lambda path, device: Components())
    path = tmp_path / "model.pth"
    path.write_bytes(b"weights")
    return path


def test_predicts(command: Command, model: Path, folder: Path, tmp_path: Path) -> None:  # noqa: F811
    out = tmp_path / "found"
    code, printed, error = command(
        *("predict", model, folder, "--out", out, "--save", "png, yolo,labelme", "--threshold", 0.1)
    )
    assert code == 0
    assert "20 images, 20 instances (1.0 per image)" in printed
    assert printed.endswith(
        f"Predictions: {out}/predictions.json\nOverlays: {out}/overlays\nMasks as PNG: {out}/masks\n"
        f"YOLO: {out}/yolo\nLabelMe: {out}/labelme\n"
    )
    assert "20/20 images" in error
    assert {path.name for path in out.iterdir()} == {
        *("predictions.json", "overlays", "masks", "yolo", "labelme")
    }
    code, _, error = command("predict", model, folder, "--out", out)
    assert (code, "already exists" in error) == (2, True)
    one = (folder / "000.png", "--out", out, "--overwrite", "--no-overlays")
    code, printed, _ = command("predict", model, *one, "--threshold", 0.1)
    assert code == 0
    assert "1 image, 1 instance (1.0 per image)" in printed
    assert printed.endswith(f"Predictions: {out / 'predictions.json'}\n")
    score = json.loads((out / "predictions.json").read_text())["annotations"][0]["score"]
    _, printed, _ = command("predict", model, *one, "--threshold", 1)
    assert "1 image, 0 instances" in printed
    highest = re.search(r"the highest score is (0\.\d{4}); lower --threshold \(now 1\)", printed)
    assert highest is not None
    assert float(highest[1]) == pytest.approx(score, abs=1e-3)
    assert len(json.loads((out / "predictions.json").read_text())["images"]) == 1


def test_interrupted_then_resumed(
    command: Command,
    model: Path,
    folder: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "found"

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Components, "_infer", interrupted)
        code, _, error = command("predict", model, folder, "--out", out)
    assert code == 130
    assert "Interrupted. Run the same command again to resume" in error
    assert command("predict", model, folder, "--out", out)[0] == 0


def test_bad_input_is_one_line_and_leaves_nothing(
    command: Command,
    folder: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    (tmp_path / "empty").mkdir()
    out = tmp_path / "found"
    for arguments, message in (
        ([tmp_path / "no.pth", folder], "model: expected a run's folder, a checkpoint or an exported file"),
        ([tmp_path / "empty", folder], "model: expected a checkpoint in the folder"),
        ([tmp_path / "no.pth", tmp_path / "empty"], "no images in"),
        ([tmp_path / "no.pth", folder, "--threshold", 3], "threshold: expected a score from 0 to 1, got 3.0"),
        ([tmp_path / "no.pth", folder, "--save", "coco"], "expected some of png, yolo, labelme"),
    ):
        code, _, error = command("predict", *arguments, "--out", out)
        assert code == 2
        assert message in " ".join(error.split())
        assert not out.exists()
