"""The demo, with a few steps, as the command runs it: real trainings in processes of their own."""

import json
import os
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from sp_fast.commands.app import app

pytest.importorskip("mmdet")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder of a finished demo, and what the command printed."""
    out = tmp_path_factory.mktemp("demo") / "out"
    return out, command("demo", "--quick", "--seeds", "3", "--out", str(out))


def command(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", "sp_fast.cli", *arguments],
        env=dict(os.environ, CUDA_VISIBLE_DEVICES="", COLUMNS="80"),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def folders(out):
    return {path.name.rsplit("-", 1)[0]: path for path in (out / "runs").iterdir()}


def test_everything_is_written(demo):
    out, printed = demo
    names = {path.name for path in out.iterdir() if path.is_file()}
    assert names == {
        *("experiment.json", "lock", "results.json", "times.json"),
        *("report.html", "report.md", "curves.png"),
    }
    results = json.loads((out / "results.json").read_text())
    assert results["finished"] == results["runs"] == 7
    for label in ("no pre-training", "pseudo labels, no prompts", "saliency prompts"):
        assert label in printed
        assert label in (out / "report.html").read_text()
    for row in results["rows"].values():
        curve = row["trainings"]["8 scenes"]["curves"]["3"]
        assert [one["step"] for one in curve] == [2, 4]
        assert all(0 <= value <= 100 for one in curve for key, value in one.items() if key != "step")
    length = json.loads((folders(out)["prompts-8-scenes-seed3"] / "length.json").read_text())
    assert length["steps"] == 4
    scores = results["rows"]["prompts"]["proposals"]["3"]
    assert scores["by_size"]["all"]["objects"] > 16
    assert 0 < scores["by_size"]["all"]["mean_best_iou"] < 1
    assert max(len(line) for line in printed.splitlines() if "──" in line) <= 80


def test_sizes_memory_and_versions_are_measured(demo):
    out, _ = demo
    results, times = (json.loads((out / name).read_text()) for name in ("results.json", "times.json"))
    truth = json.loads((next((out / "runs").glob("data-*")) / "set" / "validation.json").read_text())
    for row in results["rows"].values():
        details = row["trainings"]["8 scenes"]["details"]
        assert sum(size["objects"]["3"] for size in details["sizes"].values()) == len(truth["annotations"])
        assert details["classes"] == {}  # fine-tuned and measured with one class
    for entry in times.values():
        assert entry["mmdet"]
        assert entry["sp_fast"]
        assert 1e8 < entry["memory"] < 1e11  # PyTorch alone takes 200 MB
    page = (out / "report.html").read_text()
    for part in ("sp-fast predict ", "sp-fast evaluate ", ">worst"):
        assert part in page


def test_each_row_started_from_its_own_pretraining(demo):
    logs = {name: (path / "output.log").read_text() for name, path in folders(demo[0]).items()}
    for row in ("pseudo-labels", "prompts"):
        assert f"{row}-pretrain-seed3" in logs[f"{row}-8-scenes-seed3"]
    assert "pretrained.pth" not in logs["scratch-8-scenes-seed3"]
    for row, supervised in (("prompts", True), ("pseudo-labels", False)):
        losses = json.loads((folders(demo[0])[f"{row}-pretrain-seed3"] / "result.json").read_text())["losses"]
        assert any("kernel" in name for name in losses[0]) == supervised


def test_the_same_command_makes_nothing_again(demo):
    out, _ = demo
    before = (out / "results.json").read_text()
    times = {path: (path / "result.json").stat().st_mtime_ns for path in folders(out).values()}
    again = CliRunner().invoke(app, ["demo", "--quick", "--seeds", "3", "--out", str(out)])
    assert again.exit_code == 0, again.output
    assert (out / "results.json").read_text() == before
    assert times == {path: (path / "result.json").stat().st_mtime_ns for path in folders(out).values()}
    status = CliRunner().invoke(app, ["experiment", "status", str(out)])
    assert "7 runs: 7 done, 0 running, 0 missing" in status.output
