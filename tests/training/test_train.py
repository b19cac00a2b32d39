"""The training command, in processes of its own: whole way, several processes, kill and resume, bad input."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import sp_fast
from tests.training.runs import (
    TRAIN,
    environment,
    finetune_options,
    pretrain_options,
    ranks_of,
    train,
    train_ranks,
    write_config,
    write_uneven,
)

pytest.importorskip("mmdet")

from sp_fast.mmdet_plugin.safe_resume import load_checkpoint_file
from sp_fast.train import main


@pytest.fixture(scope="module")
def pretrained(scenes, tmp_path_factory):
    """The work folder of a finished pre-training."""
    folder = tmp_path_factory.mktemp("pretrain")
    config = write_config(folder / "config.py", "pretrain")
    result = train(config, *pretrain_options(scenes), "--work-dir", folder / "run", "--epochs", 2)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder / "run"


def test_pretraining_exports_weights_that_fine_tuning_loads(scenes, pretrained, tmp_path):
    assert load_checkpoint_file(pretrained / "latest.pth")["meta"]["iter"] == 6
    assert not list(pretrained.glob("*.partial"))
    exported = torch.load(pretrained / "pretrained.pth", weights_only=True)["state_dict"]
    assert not any(name.startswith("supervision") or "fc_cls" in name for name in exported)

    image = scenes / "validation" / "000001.png"
    found = sp_fast.load(pretrained / "pretrained.pth", device="cpu").predict(image, threshold=0)
    assert found.classes == ("object",)
    same = sp_fast.load(pretrained / "latest.pth", device="cpu").predict(image, threshold=0)
    assert (found.masks == same.masks).all()
    assert (found.scores == same.scores).all()

    config = write_config(tmp_path / "config.py", "finetune")
    weights = pretrained / "pretrained.pth"
    result = train(
        *(config, *finetune_options(scenes), "--load-from", weights, "--work-dir", tmp_path / "run"),
        *("--epochs", 1),
    )
    assert result.returncode == 0, result.stderr[-3000:]
    log = result.stdout + result.stderr
    assert f"weights from {weights}: " in log
    assert "roi_head.mask_head.0.fc_cls.weight" in log  # what pre-training does not give is told
    assert len(sp_fast.load(tmp_path / "run", device="cpu").classes) == 8
    scores = scores_of(tmp_path / "run")
    assert 0 <= scores["coco/segm_mAP"] <= 1
    assert 0 <= scores["class_agnostic/segm_mAP"] <= 1

    result = train(
        *(config, *finetune_options(scenes), "--work-dir", tmp_path / "evaluated"),
        *("--load-from", tmp_path / "run" / "latest.pth", "--eval-only"),
    )
    assert result.returncode == 0, result.stderr[-3000:]
    again = scores_of(tmp_path / "evaluated")
    assert again["class_agnostic/segm_mAP"] == scores["class_agnostic/segm_mAP"]

    for file, words in (
        ("pretrained.pth", "fc_cls.bias"),
        ("latest.pth", "a checkpoint of its pre-training"),
    ):
        result = train(
            *(config, *finetune_options(scenes), "--load-from", pretrained / file, "--eval-only"),
            *("--class-agnostic", "--work-dir", tmp_path / "refused"),
        )
        assert result.returncode == 2, result.stderr[-3000:]
        assert words in result.stderr
        assert "`sp-fast evaluate`" in result.stderr
        assert "mAP" not in result.stdout


def scores_of(work_dir: Path) -> dict:
    """The last evaluation that a run logged."""
    texts = [path.read_text() for path in sorted(work_dir.glob("*/vis_data/*.json"))]
    texts += [path.read_text() for path in sorted(work_dir.glob("*/*.json"))]
    lines = [json.loads(line) for text in texts for line in text.splitlines()]
    return [line for line in lines if "coco/segm_mAP" in line][-1]


def test_two_processes_pretrain_with_batches_without_objects(scenes, uneven, tmp_path):
    """Each process takes two of a step's four images in turn; both end with the same weights."""
    config = write_config(tmp_path / "config.py", "pretrain")
    data = ["--images", scenes / "labelled", "--annotations", uneven / "uneven_masks.json"]
    length = ["--epochs", 2, "--batch-size", 1, "--total-batch", 4]
    fold = ["--cfg-options", "model.prompts.fold=kernel"]
    train_ranks(2, tmp_path, config, *data, *length, "--work-dir", tmp_path / "run", *fold)
    same = same_weights(tmp_path)
    exported = torch.load(tmp_path / "run" / "pretrained.pth", weights_only=True)["state_dict"]
    kernels = exported.pop("rpn_head.init_kernels.weight")
    mean = same["received.mean"][:, :, None, None]
    assert mean.any()
    assert same["received.images"] == 16
    assert torch.equal(kernels, same["detector.rpn_head.init_kernels.weight"] + mean)
    assert all(torch.equal(value, same[f"detector.{name}"]) for name, value in exported.items())
    assert load_checkpoint_file(tmp_path / "run" / "latest.pth")["meta"]["iter"] == 4


def test_two_processes_fine_tune_and_validate_like_one(scenes, uneven, tmp_path):
    """At most one of a step's four images has objects, so one process has none. Three for validation."""
    config = write_config(tmp_path / "config.py", "finetune")
    data = finetune_options(scenes)
    data[data.index("--annotations") + 1] = str(uneven / "uneven_labelled.json")
    train_ranks(
        *(2, tmp_path, config, *data, "--epochs", 2, "--work-dir", tmp_path / "run"),
        *("--cfg-options", f"val_evaluator.0.outfile_prefix={tmp_path}/two"),
    )
    same_weights(tmp_path)
    result = train(
        *(config, *data, "--work-dir", tmp_path / "one", "--eval-only"),
        *("--load-from", tmp_path / "run" / "latest.pth"),
        *("--cfg-options", f"test_evaluator.0.outfile_prefix={tmp_path}/one"),
    )
    assert result.returncode == 0, result.stderr[-3000:]
    two, one = (scores_of(tmp_path / name) for name in ("run", "one"))
    assert {name: two[name] for name in two if "mAP" in name} == pytest.approx(
        {name: one[name] for name in one if "mAP" in name}
    )
    two, one = (json.loads((tmp_path / f"{name}.segm.json").read_text()) for name in ("two", "one"))
    assert len({found["image_id"] for found in one}) == 3
    assert [found["image_id"] for found in two] == [found["image_id"] for found in one]
    assert [found["score"] for found in two] == pytest.approx([found["score"] for found in one])


def test_a_damaged_checkpoint_is_one_line_of_one_process(scenes, tmp_path):
    config = write_config(tmp_path / "config.py", "finetune")
    folder, damaged = tmp_path / "run", tmp_path / "damaged.pth"
    torch.save({"state_dict": {"weight": torch.zeros(4096)}}, damaged)
    damaged.write_bytes(damaged.read_bytes()[:9000])
    data = [*finetune_options(scenes)[:4], "--no-val", "--load-from", damaged, "--work-dir", folder]
    first, second = ranks_of(2, main, [str(config), *map(str, data)])
    assert (first.returncode, second.returncode) == (2, 2)
    assert len([line for line in first.stderr.splitlines() if str(damaged) in line]) == 1
    assert "Traceback" not in first.stderr + second.stderr
    assert str(damaged) not in second.stderr
    assert not folder.exists()


@pytest.fixture(scope="module")
def uneven(scenes):
    write_uneven(scenes)
    return scenes


def same_weights(folder):
    """The weights that two processes saved, which are equal."""
    first, second = (torch.load(folder / f"rank{rank}.pth", weights_only=True) for rank in (0, 1))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    return first


def test_an_interrupted_run_resumes(scenes, tmp_path):
    """Ctrl-C at whatever moment, after the first step; the rest of a schedule in epochs is kept."""
    config = write_config(tmp_path / "config.py", "pretrain")
    arguments = [str(config), *pretrain_options(scenes), "--work-dir", str(tmp_path / "run")]
    arguments += ["--cfg-options", "default_hooks.checkpoint.seconds=0"]
    process = subprocess.Popen(
        [sys.executable, str(TRAIN), *arguments], env=environment(), stderr=subprocess.PIPE, text=True
    )
    latest = tmp_path / "run" / "latest.pth"
    deadline = time.monotonic() + 120
    while not latest.is_file() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    if process.returncode:  # else it was through before
        assert process.returncode == 128 + signal.SIGINT
        assert "stopped by SIGINT after step" in said
        assert said.splitlines()[-1].endswith("the same command with --resume goes on")

    result = train(*arguments, "--resume")
    assert result.returncode == 0, result.stderr[-3000:]
    final = load_checkpoint_file(latest)
    assert final["meta"]["iter"] == 12
    rates = [group["lr"] for group in final["optimizer"]["param_groups"]]
    assert max(rates) == pytest.approx(1e-5)


def test_a_loss_that_is_not_finite_stops_with_its_parts(scenes, tmp_path):
    config = write_config(tmp_path / "config.py", "pretrain")
    result = train(
        *(config, *pretrain_options(scenes), "--work-dir", tmp_path / "run"),
        *("--cfg-options", "optim_wrapper.optimizer.lr=1e18"),
    )
    assert result.returncode == 1
    message = result.stderr[result.stderr.index("sp-fast train: step") :]
    assert "is not finite. The losses of this step:" in message
    assert "s0_loss_dice" in message
    assert "loss_kernel" in message
    assert "nan" in message
    assert "Traceback" not in message
    for path in (tmp_path / "run").glob("*.pth"):
        assert all(
            torch.isfinite(one).all() for one in torch.load(path, weights_only=True)["state_dict"].values()
        )
