"""What a run shows on the terminal."""

import logging
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("mmdet")

import sp_fast.models  # noqa: F401

# isort: split
from sp_fast.mmdet_plugin.progress import ProgressHook, _print_table, label, next_command
from sp_fast.mmdet_plugin.runner import _WithoutRepetition


def test_the_table_names_its_rows_and_columns(capsys):
    values = {
        "segm_mAP": 0.123,
        "segm_mAP_50": 0.25,
        "segm_mAP_s": 0.01,
        "segm_AR@100": 0.3,
        "segm_best_iou": 0.5,
    }
    both = {
        f"{prefix}/{name}": value for prefix in ("coco", "class_agnostic") for name, value in values.items()
    }
    _print_table({**both, "coco/bbox_mAP": 0.2})
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0] == ["in", "percent", "mask", "class-agnostic", "mask", "box"]
    assert ["AP", "12.3", "12.3", "20.0"] in lines
    assert ["AP50", "25.0", "25.0", "-"] in lines
    assert ["AP", "small", "1.0", "1.0", "-"] in lines
    assert ["AR@100", "30.0", "30.0", "-"] in lines
    assert ["best", "IoU", "50.0", "50.0", "-"] in lines
    assert " ".join(lines[-1]) == "class-agnostic: all classes are taken as one"
    assert label("coco/segm_mAP_50") == "mask AP50"


def test_lines_per_parameter_are_left_out():
    def shown(message):
        record = logging.LogRecord("mmengine", logging.WARNING, "x.py", 1, message, None, None)
        return _WithoutRepetition().filter(record)

    assert not shown("backbone.layers.0.weight is skipped since its requires_grad=False")
    assert not shown("paramwise_options -- neck.weight:lr=0.1")
    assert shown("broken image left out: a.png")


@pytest.mark.parametrize(("epochs", "shown"), [(12, "epoch 3 of 12, "), (None, "")])
def test_a_log_has_epoch_loss_and_rate(epochs, shown, capsys):
    runner = SimpleNamespace(
        iter=24,
        max_iters=120,
        cfg=SimpleNamespace(train_cfg={"max_epochs": epochs}),
        optim_wrapper=SimpleNamespace(get_lr=lambda: {"lr": [5e-6, 2e-5], "base_lr": [1e-4, 1e-4]}),
    )
    hook = ProgressHook()
    hook.after_train_iter(runner, outputs={"loss": 1.25, "loss_cls": 1.0})
    hook.close()
    assert capsys.readouterr().err == f"25/120 steps, {shown}loss 1.250, rate 1.0e-04\n"


def test_the_next_command_fits_what_was_trained():
    folder = Path("runs/my run")
    assert (
        next_command(folder, ["best.pth", "latest.pth"])
        == "sp-fast predict 'runs/my run' IMAGES --out FOLDER"
    )
    assert next_command(folder, ["pretrained.pth"]).startswith(
        "sp-fast train CONFIG --load-from 'runs/my run/pretrained.pth' "
    )
