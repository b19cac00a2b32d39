"""What a run shows on the terminal."""

import logging

import pytest

pytest.importorskip("mmdet")

import sp_fast.models  # noqa: F401

# isort: split
from sp_fast.mmdet_plugin.progress import _print_table, label
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
