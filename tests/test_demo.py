"""The demo, with a few steps: everything is written, the numbers are the runs' own, nothing is done twice."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

pytest.importorskip("mmdet")

from sp_fast.demo import QUICK, run_demo
from sp_fast.report.demo_figure import overlay
from sp_fast.report.demo_results import ARMS, collect, conclusion, print_results


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    printed = io.StringIO()
    results = run_demo(out, [3], QUICK, Console(file=printed, width=120))
    return out, results, printed.getvalue()


def test_report_and_results_are_written(ran):
    out, results, printed = ran
    with Image.open(out / "report.png") as report:
        assert report.width > 1000
        assert report.height > 1000
        assert np.asarray(report.convert("L")).std() > 20
    stored = json.loads((out / "results.json").read_text())
    assert stored["summary"] == results["summary"]
    assert not list(out.glob("*.partial"))
    for arm, what in ARMS.items():
        assert what in printed
        assert results["curves"][3][arm]["step"] == [2, 4]
        assert 0 <= results["summary"][arm]["ap"] <= 100
    assert "within the noise" in printed.replace("\n", " ")


def test_progress_is_printed_without_a_terminal(ran):
    _, _, printed = ran
    assert "32/32 scenes" in printed
    assert "16/16 images" in printed
    assert printed.count(": done") == 5
    assert "left" in printed


def test_each_way_started_from_its_own_pretraining(ran):
    out, _, _ = ran
    for arm in ("pseudo_labels", "prompts"):
        assert (out / "seed3" / arm / "pretrain" / "pretrained.pth").is_file()
        log = (out / "seed3" / arm / "finetune" / "output.log").read_text()
        assert str(out / "seed3" / arm / "pretrain" / "pretrained.pth") in log
    assert "pretrained.pth" not in (out / "seed3" / "scratch" / "finetune" / "output.log").read_text()
    assert "loss_kernel" in (out / "seed3" / "prompts" / "pretrain" / "output.log").read_text()
    assert "loss_kernel" not in (out / "seed3" / "pseudo_labels" / "pretrain" / "output.log").read_text()


def test_second_run_keeps_what_is_there(ran):
    out, results, _ = ran
    printed = io.StringIO()
    again = run_demo(out, [3], QUICK, Console(file=printed, width=120))
    assert again["summary"] == results["summary"]
    assert printed.getvalue().count("kept from an earlier run") == 5


def made_up(ap):
    curves = {
        seed: {
            arm: {"step": [1, 2], "ap": [0.0, values[seed]], "ap50": [0.0, 1.0]} for arm, values in ap.items()
        }
        for seed in range(3)
    }
    proposals = {"masks_per_image": 1.0, "mean_best_iou": 0.5, "share_above_half": 0.5}
    return collect({"data": {"labelled": 20}}, dict.fromkeys(range(3), proposals), curves)


def test_mean_and_spread_over_seeds():
    ap = {"scratch": [1.0, 1.0, 1.0], "pseudo_labels": [7.0, 8.0, 9.0], "prompts": [9.0, 7.0, 8.0]}
    results = made_up(ap)
    assert results["summary"]["pseudo_labels"]["ap"] == 8
    assert results["summary"]["pseudo_labels"]["ap_spread"] == 1
    assert "+7.0 ± 1.0 against no pre-training" in conclusion(results)
    assert "effect is within the noise" in conclusion(results)
    printed = io.StringIO()
    print_results(results, Console(file=printed, width=140))
    assert "± 1.0" in printed.getvalue()
    ap["prompts"] = [11.0, 12.1, 13.0]
    assert "effect is above the noise" in conclusion(made_up(ap))


def test_overlay_tints_and_outlines():
    image = np.full((10, 10, 3), 100, np.uint8)
    mask = np.zeros((10, 10), bool)
    mask[2:8, 2:8] = True
    drawn = overlay(image, [mask], scale=2)
    assert drawn.shape == (20, 20, 3)
    assert (drawn[:4] == 100).all()
    outline, inside = drawn[4, 10].astype(int), drawn[10, 10].astype(int)
    np.testing.assert_allclose(inside, 0.6 * 100 + 0.4 * outline, atol=1)
