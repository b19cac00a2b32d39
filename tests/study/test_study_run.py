"""The study as a whole on a tiny set: interrupted anywhere it gives the numbers of an uninterrupted run."""

import io
import json
import math
from pathlib import Path

import pytest
import torch
from rich.console import Console

pytest.importorskip("mmdet")

from sp_fast.study import training
from sp_fast.study.locks import claimed
from sp_fast.study.main import run_study
from sp_fast.study.pieces import RESULT
from sp_fast.study.run import Study, StudyOptions
from sp_fast.study.source import open_data
from sp_fast.study.training import Budget, OutOfTimeError
from sp_fast.study.variants import choose_variants
from tests.study.study_data import make_data, write_config

VARIANTS = choose_variants(["none", "cosine"])


class Calls(Budget):
    """Time that is over once it has been asked for `most` times."""

    def __init__(self, most):
        self.asked, self.most = 0, most

    @property
    def left(self):
        self.asked += 1
        return 1000.0 if self.asked <= self.most else 0.0


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    config = write_config(folder / "narrow.py")
    options = StudyOptions(str(config), images=24, size=64, proposal_size=64, finetune_steps=3, evaluations=2)
    return open_data(make_data(folder / "data"), 64), options


def study(tiny, out, seeds, budget=None):
    data, options = tiny
    return Study(
        data,
        out,
        options,
        VARIANTS,
        seeds,
        device=torch.device("cpu"),
        budget=budget or Budget(),
        console=Console(file=io.StringIO()),
        workers=1,
    )


def run(tiny, out, seeds, console):
    data, options = tiny
    return run_study(
        data.root,
        out,
        options,
        VARIANTS,
        seeds,
        device=torch.device("cpu"),
        minutes=None,
        workers=1,
        console=console,
        command="sp-fast study mini-coco ...",
        docs=out / "docs" / "page.md",
    )


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """Two seeds, each by a call of its own; the second reports on both."""
    out = tmp_path_factory.mktemp("whole")
    printed = io.StringIO()
    for seed in (0, 1):
        assert run(tiny, out, [seed], Console(file=printed, width=80))
    return out, printed.getvalue()


def measured(out, seed):
    """All numbers of a seed but the times."""
    numbers = {}
    for path in sorted((out / f"seed{seed}").rglob(RESULT)):
        result = json.loads(path.read_text())
        for name in ("seconds", "wall_seconds", "images_per_second", "device"):
            result.pop(name, None)
        for one in result.get("evaluations", []):
            one.pop("seconds")
        numbers[path.parent.relative_to(out).as_posix()] = result
    return numbers


def test_interrupted_again_and_again_the_numbers_are_the_same(tiny, whole, tmp_path):
    calls = stopped = 0
    while True:
        calls += 1
        assert calls < 60
        try:
            study(tiny, tmp_path, [1], Calls(9)).run()
            break
        except OutOfTimeError:
            stopped += len(list(tmp_path.rglob(training.CHECKPOINT)))
    assert calls > 3
    assert stopped > 0  # in the middle of training, not only between runs
    assert measured(tmp_path, 1) == measured(whole[0], 1)
    assert not list(tmp_path.rglob(training.CHECKPOINT))


def test_everything_is_measured_and_written(whole):
    out, printed = whole
    results = json.loads((out / "results.json").read_text())
    assert results["complete"]
    assert not results["missing"]
    for variant in VARIANTS:
        for percent in ("10", "100"):
            entry = results["summary"][variant][percent]["class_agnostic"]
            assert set(entry["values"]) == {"0", "1"}
            assert entry["mean"] == pytest.approx(sum(entry["values"].values()) / 2)
            assert entry["spread"] is not None
        run = results["runs"][variant]["finetune-10"]["0"]
        assert run["labelled"]["images"] == 1
        assert [one["step"] for one in run["evaluations"]] == [2, 3]
        assert all(math.isfinite(entry["loss"]) for entry in run["log"])
    assert results["runs"]["none"].keys() == {"finetune-10", "finetune-100"}
    assert "loss_kernel" in results["runs"]["cosine"]["pretrain"]["0"]["log"][0]
    assert results["proposals"]["paper"]["train"]["images"] == 12
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "docs" / "page.png").is_file()
    beside = json.loads((out / "docs" / "page.json").read_text())
    assert beside["summary"] == results["summary"]
    assert "sp-fast study mini-coco ..." in (out / "docs" / "page.md").read_text()
    assert "no pre-training" in printed
    assert "cosine - labels" not in printed
    assert not list(out.rglob("*.partial"))


def test_finished_parts_are_not_made_again(tiny, whole, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in whole[0].rglob(RESULT)}
    study(tiny, whole[0], [0, 1]).run()
    assert {path: path.stat().st_mtime_ns for path in whole[0].rglob(RESULT)} == before


def test_other_options_for_the_same_folder_are_an_error(tiny, whole):
    data, options = tiny
    other = StudyOptions(options.backbone, 48, 64, 64, options.finetune_steps, options.evaluations)
    with pytest.raises(ValueError, match=r"holds a study with images 24, now it is 48; .*another --out"):
        study((data, other), whole[0], [0])


def test_two_calls_divide_the_variants(tiny, whole, tmp_path):
    first = study(tiny, tmp_path, [1])
    with claimed(tmp_path / "seed1" / "cosine"):
        first.run()
    assert [piece.variant for piece in first.pieces if piece.finished] == ["none"] * 2
    with claimed(tmp_path / "seed1" / "none"):
        study(tiny, tmp_path, [1]).run()
    assert all(piece.finished for piece in first.pieces)
    assert measured(tmp_path, 1) == measured(whole[0], 1)


def test_weights_of_another_run_of_training_load_into_sp_fast_train(whole):
    from sp_fast.mmdet_plugin.safe_resume import load_checkpoint_file

    state = load_checkpoint_file(whole[0] / "seed0" / "cosine" / "pretrain" / "pretrained.pth")["state_dict"]
    assert "rpn_head.init_kernels.weight" in state
    assert not [name for name in state if "fc_cls" in name or "conv_seg" in name or "supervision" in name]


def test_what_prompts_do_is_measured_in_the_models_that_were_pre_trained(tiny, whole, monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    import study_prompts

    study_prompts.main([str(tiny[0].root), str(whole[0]), "--seeds", "0,1", "--variants", "cosine"])
    found = {}
    for (columns, _, _), text in zip(
        study_prompts.TABLES, capsys.readouterr().out.strip().split("\n\n"), strict=True
    ):
        head, _, row = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines())
        assert head[1:] == list(columns.values())
        assert row[0] == "prompts by cosine"
        found |= dict(zip(columns, (float(cell.split(" ± ")[0]) for cell in row[1:]), strict=True))
    assert found["beside_kernels"] > 0
    assert found["beside_first"] > 0
    assert 0 < found["taken"] <= 1
    assert found["explained"] <= 1
    assert 0 < found["iou_none"] <= 100
    assert len({found[f"iou_{whose}"] for whose in ("none", "own", "other", "mean")}) == 4
    assert found["loss"] > 0
    assert 0 <= found["constant"] <= 3
    assert found["alike"] <= 1
    assert 0 < found["turned"] < 90


def test_finer_grids_hold_the_annotated_masks_better(tiny, monkeypatch, capsys):
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "benchmarks")
    import study_ceiling

    study_ceiling.main([str(tiny[0].root), "--sizes", "64,256"])
    rows = [line.strip("|").split("|") for line in capsys.readouterr().out.splitlines()[2:]]
    assert [int(row[0]) for row in rows] == [64, 256]
    coarse, fine = (float(row[-1]) for row in rows)
    assert 0 < coarse < fine <= 100
