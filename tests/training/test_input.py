"""What the training command says to input that does not fit; each error before anything is written."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.training.runs import CONFIGS, finetune_options, pretrain_options, write_config

pytest.importorskip("mmdet")

import sp_fast.models  # noqa: F401

# isort: split

from mmengine.config import Config

from sp_fast.configuration import scale_length
from sp_fast.data.coco import load_coco
from sp_fast.data.store import in_order, store_path, write_store
from sp_fast.train import load_config, main, parse_arguments, prepare


@pytest.fixture
def run(tmp_path, capfd):
    """Runs the command in this process; gives what it wrote to standard error, the status being 2."""

    def run(kind, *arguments):
        work_dir = tmp_path / "run"
        config = write_config(tmp_path / "config.py", kind)
        status = main([str(config), *map(str, arguments), "--work-dir", str(work_dir)])
        error = capfd.readouterr().err
        assert status == 2, error
        assert "Traceback" not in error
        assert not work_dir.exists()
        return error[error.index("sp-fast train: ") :]

    return run


def changed(scenes, tmp_path, change):
    """The labelled scenes' annotation file with something wrong in it."""
    coco = json.loads((scenes / "labelled.json").read_text())
    change(coco)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(coco))
    return ["--images", scenes / "labelled", "--annotations", path, "--no-val"]


def test_no_such_folder(run, scenes):
    error = run("pretrain", "--images", scenes / "nowhere", "--annotations", scenes / "masks.json")
    assert "--images: expected a folder of images, got" in error


def test_no_such_file(run, scenes):
    assert "--annotations: expected a file" in run("pretrain", "--annotations", scenes / "nothing.json")
    assert "--weights: expected a file" in run("pretrain", *pretrain_options(scenes), "--weights", "no.pth")
    folder = run("pretrain", "--annotations", scenes)
    assert f"--annotations: expected a file, got the folder {scenes}; `sp-fast check FOLDER" in folder


def test_no_such_config(capfd):
    assert main(["nowhere.py"]) == 2
    assert (
        "CONFIG: expected a config's name (see `sp-fast train --list`) or file, got 'nowhere.py'"
        in capfd.readouterr().err
    )


def test_missing_key(run, scenes, tmp_path):
    error = run(
        "finetune", *changed(scenes, tmp_path, lambda coco: coco["annotations"][1].pop("category_id"))
    )
    assert "changed.json" in error
    assert "category_id: expected a whole number or a text, got no such key" in error


def test_unknown_category(run, scenes, tmp_path):
    def change(coco):
        coco["annotations"][2]["category_id"] = 99

    error = run("finetune", *changed(scenes, tmp_path, change), "--class-agnostic")
    assert "category_id: expected an id of 'categories', got 99" in error


def test_bad_run_lengths(run, scenes, tmp_path):
    def change(coco):
        coco["annotations"][0]["segmentation"]["counts"] += "0"

    error = run("finetune", *changed(scenes, tmp_path, change))
    assert "segmentation: expected counts of" in error


def test_validation_with_other_categories(run, scenes, tmp_path):
    coco = json.loads((scenes / "validation.json").read_text())
    coco["categories"].append({"id": 77, "name": "zebra"})
    path = tmp_path / "other.json"
    path.write_text(json.dumps(coco))
    error = run("finetune", *finetune_options(scenes)[:-1], path)
    assert re.search(r"expected the categories of .*labelled\.json, got also zebra", error)


def test_masks_without_their_seeds(run, scenes, tmp_path):
    path = tmp_path / "masks.json"
    path.write_text((scenes / "masks.json").read_text())
    error = run("pretrain", "--images", scenes / "labelled", "--annotations", path)
    assert "masks.seeds.safetensors, which does not exist" in error
    assert "model.source=import" in error


@pytest.mark.parametrize("option", ["--weights", "--load-from"])
def test_weights_that_are_none(run, scenes, tmp_path, option):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"not a checkpoint")
    assert str(path) in run("finetune", *finetune_options(scenes), option, path)


def test_weights_of_another_network(run, scenes, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"features.0.0.weight": torch.zeros(32, 3, 3, 3)}, path)
    error = run("pretrain", *pretrain_options(scenes), "--weights", path)
    assert "no key of" in error
    assert "another CONFIG of `sp-fast train`" in error


def test_a_pretraining_checkpoint_is_told_from_its_weights(run, scenes, tmp_path):
    path = tmp_path / "latest.pth"
    torch.save({"state_dict": {"detector.backbone.conv1.weight": torch.zeros(1)}}, path)
    error = run("finetune", *finetune_options(scenes), "--load-from", path)
    assert "the weights are beside it, in pretrained.pth" in error


@pytest.mark.parametrize(("kind", "name"), [("pretrain", "masks"), ("finetune", "labelled")])
def test_a_store_is_read_instead_of_its_file(scenes, tmp_path, monkeypatch, kind, name):
    pytest.importorskip("pyarrow")
    path = tmp_path / f"{name}.json"
    for file in scenes.glob(f"{name}.*"):
        shutil.copy(file, tmp_path)
    coco = load_coco(path)
    write_store(store_path(path), path, coco, coco["images"], in_order(coco))
    options = pretrain_options(scenes) if kind == "pretrain" else finetune_options(scenes)
    options[options.index("--annotations") + 1] = str(path)
    arguments = [str(write_config(tmp_path / "config.py", kind)), *options]

    def read(file):
        assert Path(file) != path, "reads the JSON file"
        return json.loads(Path(file).read_text())

    beside = store_path(path).rename(tmp_path / "other.arrow")
    expected = load_config(parse_arguments([*arguments, "--work-dir", "run"])).pretty_text
    beside.rename(store_path(path))
    monkeypatch.setattr("sp_fast.data.coco.read_json", read)
    monkeypatch.setattr("sp_fast.data.check.read_json", read)
    assert load_config(parse_arguments([*arguments, "--work-dir", "run"])).pretty_text == expected


def test_epochs_scale_the_schedule_but_not_what_is_asked_for_by_name(scenes, tmp_path):
    arguments = [
        str(write_config(tmp_path / "config.py", "finetune")),
        *finetune_options(scenes),
        "--epochs",
        "8",
    ]
    cfg = load_config(parse_arguments(arguments))
    assert (cfg.train_cfg.max_epochs, cfg.train_cfg.val_interval) == (8, 8)
    assert (cfg.param_scheduler[0].milestones, cfg.param_scheduler[0].end) == ([6], 8)
    cfg = load_config(parse_arguments([*arguments, "--cfg-options", "train_cfg.val_interval=2"]))
    assert (cfg.train_cfg.max_epochs, cfg.train_cfg.val_interval) == (8, 2)


@pytest.mark.parametrize("steps", [1, 2, 3, 20, 22, 100, 301, 600, 1200])
def test_no_evaluation_is_added_by_scaling_the_schedule(steps):
    cfg = Config(dict(train_cfg=dict(type="StepTrainLoop", max_iters=600, val_interval=200)))
    scale_length(cfg, "steps", steps)
    assert -(-steps // cfg.train_cfg.val_interval) == min(3, steps)


def test_more_objects_than_kernels_are_said(scenes, tmp_path, capfd):
    config = str(write_config(tmp_path / "config.py", "finetune"))
    few = ["--cfg-options", "model.rpn_head.num_proposals=1"]
    arguments = [config, *finetune_options(scenes), "--work-dir", str(tmp_path / "run"), *few]
    prepare(parse_arguments(arguments))
    coco = load_coco(scenes / "labelled.json")
    counts = Counter(one["image_id"] for one in coco["annotations"]).values()
    more = f"{sum(count > 1 for count in counts)} of {len(coco['images'])} images have more objects"
    said = capfd.readouterr().out
    assert f"{more} (up to {max(counts)}) than the model has kernels (1)" in said


def test_options_a_config_has_no_use_for(run, scenes):
    assert "--val-images: this config has no val_dataloader" in run("pretrain", "--val-images", scenes)
    error = run("pretrain", *pretrain_options(scenes), "--cfg-options", "model.source=shared")
    assert "--annotations: source='shared'" in error
    assert "--epochs: expected at least 1, got 0" in run("pretrain", *pretrain_options(scenes), "--epochs", 0)


@pytest.mark.parametrize(
    "path", sorted(CONFIGS.glob("[a-z]*/[a-z]*.py")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_every_config_builds_its_model(path):
    from mmdet.registry import MODELS
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    cfg = Config.fromfile(path)
    with DefaultScope.overwrite_default_scope("mmdet"), torch.device("meta"):
        model = MODELS.build(cfg.model)
    assert sum(one.numel() for one in model.parameters()) > 1e6
