"""Options that say how to run, and what they say where they cannot."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch

from tests.training.runs import finetune_options, pretrain_options, write_config

pytest.importorskip("mmdet")

import sp_fast.models  # noqa: F401

# isort: split

from sp_fast.configuration import default_folder
from sp_fast.train import load_config, main, parse_arguments


@pytest.fixture
def command(scenes, tmp_path):
    """The arguments of a run of a kind, with more."""

    def get(kind, *arguments):
        data = finetune_options(scenes) if kind == "finetune" else pretrain_options(scenes)
        config = write_config(tmp_path / "config.py", kind)
        return [str(config), *data, "--work-dir", str(tmp_path / "run"), *map(str, arguments)]

    return get


@pytest.fixture
def error(command, tmp_path, capfd):
    """Runs the command; gives what it wrote to standard error, the status being 2 and nothing written."""

    def get(kind, *arguments):
        assert main(command(kind, *arguments)) == 2
        assert not (tmp_path / "run").exists()
        return capfd.readouterr().err

    return get


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_random_weights_only_where_they_are_asked_for(error, kind):
    said = error(kind, "--resume", "--cfg-options", "from_scratch=False")
    assert "--weights: expected published weights of the backbone" in said
    assert "--from-scratch starts from random ones" in said
    assert "https://download.pytorch.org/models/mobilenet_v2-b0353104.pth" in said
    assert "download.openmmlab.com/mmselfsup/1.x/densecl" in said


def test_from_scratch_contradicts_weights(error, tmp_path):
    (tmp_path / "weights.pth").touch()
    said = error("finetune", "--from-scratch", "--weights", tmp_path / "weights.pth")
    assert "--from-scratch: expected without --weights and --load-from" in said


def test_shipped_configs_ask_for_weights_and_the_demo_does_not():
    from mmengine.config import Config

    from sp_fast.configs import config_names, find_config

    asking = {name for name in config_names() if not Config.fromfile(find_config(name)).get("from_scratch")}
    assert {name for name in config_names() if name not in asking} == {"demo/pretrain", "demo/finetune"}


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--seed", -1, "expected 0 to 4294967295, got -1"),
        ("--seed", 2**32, "expected 0 to 4294967295, got 4294967296"),
        ("--batch-size", 0, "expected at least 1, got 0"),
        ("--total-batch", 0, "expected at least 1, got 0"),
        ("--steps", 0, "expected at least 1, got 0"),
    ],
)
def test_numbers_out_of_range(error, option, value, words):
    assert error("finetune", option, value) == f"sp-fast train: {option}: {words}\n"


def test_cached_features_of_a_trained_backbone(error):
    assert "--cache features: expected a frozen backbone" in error("finetune", "--cache", "features")


def test_no_mixed_precision_without_a_gpu(error, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "--amp: expected a GPU" in error("finetune", "--amp")


@pytest.mark.parametrize(("bf16", "dtype"), [(True, "bfloat16"), (False, "float16")])
def test_the_type_of_mixed_precision(command, monkeypatch, bf16, dtype):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: bf16)
    wrapper = load_config(parse_arguments(command("finetune", "--amp"))).optim_wrapper
    assert (wrapper.type, wrapper.dtype) == ("AmpOptimWrapper", dtype)
    assert wrapper.optimizer.type == "AdamW"


def test_bfloat16_is_the_default_of_a_gpu_that_has_it(command, monkeypatch):
    def wrapper(*options):
        return load_config(parse_arguments(command("finetune", *options))).optim_wrapper.type

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert wrapper() == wrapper("--no-amp") == "OptimWrapper"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert (wrapper(), wrapper("--no-amp")) == ("AmpOptimWrapper", "OptimWrapper")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert wrapper() == "OptimWrapper"


def test_an_override_that_fits_no_entry(error):
    said = error("finetune", "--cfg-options", "optim_wrapper.optimizer.lr.x=1")
    assert said.startswith("sp-fast train: --cfg-options: ")


def test_early_stopping_needs_a_validation(error):
    assert "--early-stop: this config has no validation" in error("pretrain", "--early-stop", 3)
    assert "--early-stop: expected at least 1 validation, got 0" in error("finetune", "--early-stop", 0)


@pytest.mark.parametrize(
    ("package", "option"), [("wandb", ["--wandb", "leaves"]), ("tensorboard", ["--tensorboard"])]
)
def test_a_log_whose_package_is_missing(error, monkeypatch, package, option):
    from importlib import util

    plain = util.find_spec
    monkeypatch.setattr(
        util, "find_spec", lambda name, *rest: None if name == package else plain(name, *rest)
    )
    said = error("finetune", *option)
    assert f"{option[0]}: expected the package {package}, which is missing: pip install {package}" in said


class FakeWandb(types.ModuleType):
    """Keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = types.SimpleNamespace(name="wandb")
        self.started, self.logged = [], []
        self.config = types.SimpleNamespace(update=lambda *_, **__: None)
        self.run = types.SimpleNamespace(log_code=lambda **_: None)

    def init(self, **options):
        self.started.append(options)

    def log(self, values, commit):
        self.logged.append(values)

    def join(self):
        pass

    def finish(self):
        pass


def test_logs_for_tensorboard_and_wandb(command, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    options = (
        "--tensorboard",
        "--wandb",
        "leaves",
        "--steps",
        "2",
        "--cfg-options",
        "train_cfg.val_interval=2",
    )
    assert main(command("finetune", *options)) == 0
    assert [(one["project"], one["name"]) for one in wandb.started] == [("leaves", "run")]
    assert sum("loss" in values for values in wandb.logged) == 2
    assert sum("coco/segm_mAP" in values for values in wandb.logged) == 1
    (events,) = (tmp_path / "run").glob("*/vis_data/events.*")
    written = EventAccumulator(str(events))
    written.Reload()
    assert [one.step for one in written.Scalars("loss")] == [1, 2]
    assert [one.step for one in written.Scalars("coco/segm_mAP")] == [2]


def test_steps_where_the_config_counts_epochs(command):
    cfg = load_config(parse_arguments(command("finetune", "--steps", "40")))
    assert cfg.train_cfg == dict(type="StepTrainLoop", max_iters=40, val_interval=40)
    (schedule,) = cfg.param_scheduler
    assert (schedule.by_epoch, schedule.end, schedule.milestones) == (False, 40, [30])
    assert "convert_to_iter_based" not in schedule


@pytest.mark.parametrize(
    ("config", "folder"),
    [
        ("knet_r50/pretrain", "runs/knet_r50/pretrain"),
        ("pretrain/knet.py", "runs/pretrain/knet"),
        ("finetune/knet.py", "runs/finetune/knet"),
        ("../mine.py", "runs/mine"),
        ("/home/me/mine.py", "runs/me/mine"),
    ],
)
def test_each_config_has_a_work_folder_of_its_own(config, folder):
    assert default_folder(config) == Path(folder)
