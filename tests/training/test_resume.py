"""Folders of earlier runs: resuming where the checkpoint is of the same run, overwriting, longer runs."""

from __future__ import annotations

import json
import math

import pytest
import torch

from tests.conftest import forget_runs
from tests.training.runs import finetune_options, pretrain_options, write_config

pytest.importorskip("mmdet")

import sp_fast.models  # noqa: F401

# isort: split
from mmengine.config import Config

from sp_fast.mmdet_plugin.safe_resume import load_checkpoint_file
from sp_fast.train import main

COSINE = "param_scheduler = [dict(type='CosineAnnealingLR', end=4, T_max=4, convert_to_iter_based=True)]"
WARM_UP = "param_scheduler = [dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=1000)]"


@pytest.fixture
def run(tmp_path, capfd, monkeypatch):
    """Runs the command in the work folder; gives its exit status and what it wrote."""

    def get(kind, *arguments, folder="run", more=""):
        config = write_config(tmp_path / f"{kind}.py", kind)
        config.write_text(config.read_text() + more)
        # mmengine formats the config five times per run, which takes longer than the run.
        monkeypatch.setattr(Config, "pretty_text", property(lambda cfg: repr(cfg.to_dict())))
        status = main([str(config), "--work-dir", str(tmp_path / folder), *map(str, arguments)])
        forget_runs()
        return status, "".join(capfd.readouterr())

    return get


@pytest.fixture
def with_categories(scenes, tmp_path):
    """The labelled scenes' annotations with other categories, as options."""

    def get(change):
        coco = json.loads((scenes / "labelled.json").read_text())
        change(coco)
        path = tmp_path / "changed.json"
        path.write_text(json.dumps(coco))
        return ["--images", scenes / "labelled", "--annotations", path, "--no-val"]

    return get


def one_class(coco):
    coco["categories"] = coco["categories"][:1]
    for annotation in coco["annotations"]:
        annotation["category_id"] = coco["categories"][0]["id"]


def other_ids(coco):
    new = {category["id"]: 900 - category["id"] for category in coco["categories"]}
    for category in coco["categories"]:
        category["id"] = new[category["id"]]
    for annotation in coco["annotations"]:
        annotation["category_id"] = new[annotation["category_id"]]


def one_name(coco):
    for category in coco["categories"]:
        category["name"] = "same"


def rates(folder):
    """Learning rate of each step."""
    lines = [
        json.loads(line)
        for path in folder.glob("*/vis_data/scalars.json")
        for line in path.read_text().splitlines()
    ]
    return {line["step"]: line["base_lr"] for line in lines if "base_lr" in line}


def test_a_folder_of_an_earlier_run(run, scenes, with_categories, tmp_path):
    data = [*finetune_options(scenes)[:4], "--no-val"]
    assert run("finetune", *data, "--steps", 1)[0] == 0
    latest = tmp_path / "run" / "latest.pth"
    written = latest.read_bytes()
    status, said = run("finetune", *with_categories(one_class), "--steps", 2, "--resume")
    assert status == 2
    assert f"--resume: {latest}: expected a checkpoint of the classes " in said
    status, said = run("finetune", *data, "--steps", 1)
    assert status == 2
    assert "has latest.pth of an earlier run. --resume goes on with it" in said
    status, said = run("finetune", *data, "--resume", "--overwrite")
    assert status == 2
    assert "--resume: expected without --overwrite" in said
    assert latest.read_bytes() == written
    assert run("finetune", *data, "--steps", 1, "--seed", 5, "--overwrite")[0] == 0
    assert latest.read_bytes() != written


def test_resuming_without_the_checkpoint(run, scenes, tmp_path):
    folder, command = tmp_path / "run", ("pretrain", *pretrain_options(scenes), "--steps", 1, "--resume")
    assert run(*command)[0] == 0
    (folder / "latest.pth").unlink()
    weights = (folder / "pretrained.pth").read_bytes()
    # A validation before the first step writes best.pth without a checkpoint: nothing is lost then.
    torch.save({"state_dict": {}, "meta": {"iter": 0}}, folder / "best.pth")
    status, said = run(*command)
    assert status == 2
    assert f"--resume: expected latest.pth in {folder}, got only pretrained.pth of step 1" in said
    assert "--load-from" in said
    assert "--overwrite" in said
    assert (folder / "pretrained.pth").read_bytes() == weights
    (folder / "pretrained.pth").unlink()
    assert run(*command)[0] == 0
    torch.save({"state_dict": {}, "meta": {"iter": 1}}, folder / "best.pth")
    (folder / "latest.pth").unlink()
    status, said = run(*command)
    assert status == 2
    assert "got only best.pth of step 1" in said


def test_a_checkpoint_of_mmengines_hook_is_checked_too(run, scenes, with_categories):
    more = "default_hooks.update(checkpoint=dict(_delete_=True, type='CheckpointHook', by_epoch=False))"
    assert run("finetune", *finetune_options(scenes)[:4], "--no-val", "--steps", 1, more=more)[0] == 0
    status, said = run("finetune", *with_categories(one_class), "--steps", 2, "--resume", more=more)
    assert status == 2
    assert "iter_1.pth: expected a checkpoint of the classes " in said


def test_a_longer_run_follows_its_own_schedule(run, scenes, tmp_path):
    data = pretrain_options(scenes)
    assert run("pretrain", *data, "--steps", 3, more=COSINE)[0] == 0
    assert run("pretrain", *data, "--steps", 6, "--resume", more=COSINE)[0] == 0
    found = rates(tmp_path / "run")
    assert [found[step] for step in (1, 2, 3)] == pytest.approx([1e-4, 7.5e-5, 2.5e-5])
    expected = [1e-4 * (1 + math.cos(math.pi * step / 6)) / 2 for step in (3, 4, 5)]
    assert [found[step] for step in (4, 5, 6)] == pytest.approx(expected)


def test_classes_are_matched_by_name(run, scenes, with_categories, tmp_path):
    data = [*finetune_options(scenes)[:4], "--no-val"]
    assert run("finetune", *data, "--steps", 1)[0] == 0
    latest = tmp_path / "run" / "latest.pth"
    still = ["--cfg-options", "optim_wrapper.optimizer.lr=0"]
    renumbered = with_categories(other_ids)
    status, said = run("finetune", *renumbered, "--steps", 1, "--load-from", latest, *still, folder="other")
    assert status == 0, said
    before, after = (load_checkpoint_file(tmp_path / name / "latest.pth") for name in ("run", "other"))
    names, others = (one["meta"]["dataset_meta"]["classes"] for one in (before, after))
    assert sorted(names) == sorted(others)
    assert names != others
    head = "roi_head.mask_head.0.fc_cls.weight"
    rows, moved = (one["state_dict"][head] for one in (before, after))
    for name in names:
        assert (moved[others.index(name)] == rows[names.index(name)]).all()

    validation = [*finetune_options(scenes)[4:], "--eval-only", "--load-from", latest]
    status, said = run("finetune", *validation, folder="evaluated")  # the checkpoint names the classes
    assert status == 0, said


def test_classes_of_the_same_name(run, scenes, with_categories):
    _, images, _, annotations, _ = with_categories(one_name)
    data = ["--images", images, "--annotations", annotations]
    data += ["--val-images", images, "--val-annotations", annotations, "--steps", 1]
    status, said = run("finetune", *data)
    assert status == 2
    assert "'same' for the ids" in said
    status, said = run("finetune", *data, "--class-agnostic")
    assert status == 0, said


def test_no_val(run, scenes, tmp_path):
    assert run("finetune", *finetune_options(scenes), "--no-val")[0] == 2
    status, said = run("finetune", *finetune_options(scenes)[:4], "--no-val", "--early-stop", 2)
    assert "--early-stop: this config has no validation" in said
    status, said = run("finetune", *finetune_options(scenes)[:4], "--steps", 1)
    assert status == 2
    assert "--val-annotations" in said
    assert "--no-val" in said


def test_a_warm_up_longer_than_the_run_is_reported(run, scenes):
    status, said = run("pretrain", *pretrain_options(scenes), "--steps", 1, more=WARM_UP)
    assert status == 0
    assert "warm-up of 1000 steps in a run of 1" in said


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("optim_wrapper.optimizer.type=AdamWW", "expected an optimiser such as AdamW"),
        ("default_hooks.best.type=EMAHok", "unknown type of hook 'EMAHok'; did you mean EMAHook?"),
        ("train_cfg.type=StepTrainLop", "unknown type of loop 'StepTrainLop'; did you mean StepTrainLoop?"),
        ("model.type=Pretrainer", "unknown type of model 'Pretrainer'; did you mean "),
        ("train_dataloader.dataset.pipeline.2.type=Flip", "unknown type of transform 'Flip'; did you mean "),
        ("optim_wrapper.optimizer.rate=1", "unexpected keyword argument 'rate'"),
    ],
)
def test_misspelt_values_of_a_config_are_one_line(run, scenes, tmp_path, option, words):
    status, said = run("pretrain", *pretrain_options(scenes), "--cfg-options", option)
    assert status == 2
    assert words in said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "error"),
    [
        ("model = dict(", "SyntaxError"),
        ("model = 1 / 0", "ZeroDivisionError"),
        (
            "from mmengine.config import read_base\nwith read_base():\n    from .x import *",
            "ConfigParsingError",
        ),
    ],
)
def test_a_config_with_an_error(tmp_path, capfd, content, error):
    path = tmp_path / "config.py"
    path.write_text(content)
    assert main([str(path)]) == 2
    assert f"CONFIG: {path}: {error}" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("more", "arguments"),
    [
        ("train_cfg = dict(_delete_=True, type='StepTrainLoop')", ["--steps", 3]),
        ("default_hooks = None", ["--early-stop", 2]),
        ("", ["--cfg-options", "train_dataloader.dataset=3"]),
    ],
)
def test_a_config_without_what_an_option_changes(run, scenes, more, arguments):
    status, said = run("finetune", *finetune_options(scenes), *arguments, more=more)
    assert status == 2
    assert "sp-fast train: " in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cfg-options", "seed"], "--cfg-options: expected KEY=VALUE"),
        (["--epochs", "1", "--steps", "5"], "--steps: not allowed with argument --epochs"),
    ],
)
def test_arguments_that_cannot_be_read(capfd, arguments, words):
    with pytest.raises(SystemExit) as stopped:
        main(["knet_r50/finetune", *arguments])
    assert stopped.value.code == 2
    assert words in capfd.readouterr().err
