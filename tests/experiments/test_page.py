"""The page, and the pictures on it."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from sp_fast.drawing import overlay
from sp_fast.experiments.page import page
from sp_fast.experiments.pictures import prediction_samples
from sp_fast.experiments.plan import Plan
from sp_fast.experiments.report import command_line, write_report
from sp_fast.experiments.results import collect, read_times
from sp_fast.experiments.store import Source
from tests.experiments import made_up


class Tags(HTMLParser):
    """Checks that what is opened is closed; gathers the text and the links."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs) -> None:
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs) -> None:
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        self.text += " "

    def handle_data(self, data: str) -> None:
        self.text += data


def rendered(plan: Plan) -> str:
    return page(plan, collect(plan), read_times(plan), "sp-fast experiment run made_up --out 'a b'")


def test_the_page_holds_the_numbers_the_settings_and_the_environment(finished: Plan) -> None:
    text = " ".join(Tags(rendered(finished)).text.split())
    for part in (
        "Made-up <numbers>",
        "Mean ± standard deviation over seeds 0, 1, 2; 25 of 25 runs finished.",
        "no pre-training 13.0 ± 1.0 26.0 ± 2.0 3",
        "saliency prompts 25.0 ± 1.0 23.5 50.0 ± 2.0 3",
        "Pre-training helps: saliency prompts − no pre-training = +4.0 ± 0.0 AP (higher, 3 seeds)",
        "saliency masks of labels, prompts 2.0 0.75 (50%) 0.75 (50%) - -",
        "model.prompts.strategy = none",
        "config = demo/finetune",
        "Made up & small.",
        made_up.HASH[:16],
        "a processor 1 2.14 3.11 25",
        # Proposals of 60 s, 6 pre-trainings of 200 s, 9 fine-tunings of 400 s and 9 of 800 s.
        "together took 3:21:00",
        "Make it again sp-fast experiment run made_up --out 'a b'",
    ):
        assert part in text
    assert "secret-host" not in text


def test_the_page_needs_nothing_else(finished: Plan, tmp_path) -> None:
    text = rendered(finished)
    links = Tags(text).links
    assert all(link.startswith(("data:image/webp;base64,", "#")) for link in links)
    # Plain images and masks; objects, and 3 rows after 2 trainings; 2 images each.
    assert len([link for link in links if link.startswith("data:")]) == 2 * (2 + 2 * 4)
    assert all("www.w3.org" in link for link in re.findall(r"https?:[^\"]*", text))
    assert "<script" not in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize("rows", [[], ["none"], ["labels"]])
def test_the_page_of_what_is_finished_so_far(plan: Plan, tmp_path, rows) -> None:
    done = plan.needed(rows, [0])
    for run in done:
        made_up.finish(plan, run, tmp_path / "images")
    text = Tags(rendered(plan)).text
    assert f"{25 - len(done)} of 25 runs are missing" in text
    assert ("Predictions" in text) == bool(rows)
    assert ("Pseudo labels" in text) == (rows == ["labels"])
    assert "Go on" in text


def test_predictions_are_those_of_the_seed_that_most_rows_have(plan: Plan, tmp_path) -> None:
    for run in plan.needed(["none"], [0, 2]) + plan.needed(["prompts"], [2]):
        made_up.finish(plan, run, tmp_path / "images")
    strips = prediction_samples(plan, "10 %")
    assert [(strip.row, strip.seed) for strip in strips] == [(None, None), ("none", 2), ("prompts", 2)]
    assert "AP 18.0" in Tags(rendered(plan)).text


def test_a_prediction_has_the_colour_of_the_object_that_it_covers(finished: Plan) -> None:
    run = finished.of("none", "10 %", 0)
    path = run.folder / "predictions.segm.json"
    predicted = json.loads(path.read_text())
    objects, hit = (decoded(strip.pictures[0]) for strip in prediction_samples(finished, "10 %")[:2])
    for one in predicted:
        one["segmentation"] = made_up.mask((45, 0, 12, 8))["segmentation"]
    path.write_text(json.dumps(predicted))
    miss = decoded(prediction_samples(finished, "10 %")[1].pictures[0])
    # The left outline of the first object, 360 / 60 times as large: x = 2, y = 3 to 21.
    outline = (slice(24, 120), slice(12, 14))
    assert abs(hit[outline] - objects[outline]).mean() < 20
    assert abs(miss[outline] - objects[outline]).mean() > 40
    assert miss[10:40, 270:272].mean() > 200  # white


def decoded(uri: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as image:
        return np.asarray(image).astype(float)


def test_overlay_draws_small_masks_over_large_ones() -> None:
    image = np.zeros((30, 90, 3), np.uint8)
    large, small = np.ones((30, 90), bool), np.zeros((30, 90), bool)
    small[10:20, 40:50] = True
    red, blue = np.array((255, 0, 0)), np.array((0, 0, 255))
    for masks, colours in (([large, small], [red, blue]), ([small, large], [blue, red])):
        drawn = overlay(image, masks, colours)
        assert drawn.shape == (120, 360, 3)
        assert drawn[0, 0].tolist() == [255, 0, 0]
        assert drawn[60, 20].tolist() == [115, 0, 0]
        assert drawn[60, 180].tolist() == [63, 0, 115]  # 0.55 of the large one's tint, 0.45 of its own


def test_the_report_is_four_files_and_the_table(finished: Plan) -> None:
    console = Console(file=io.StringIO(), width=80)
    source = Source("demo", {"quick": True})
    write_report(finished, source, console)
    names = {path.name for path in finished.out.iterdir()}
    assert {"report.html", "report.md", "curves.png", "results.json"} <= names
    text = (finished.out / "report.md").read_text()
    assert "| no pre-training | 13.0 ± 1.0 | 26.0 ± 2.0 | 3 |" in text
    assert command_line(finished, source) in text
    assert "25.0 ± 1.0" in console.file.getvalue()


def test_the_command_goes_on_with_the_same_experiment(finished: Plan, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = Source(str(tmp_path / "my experiment.py"), {"data_root": "/data", "quick": True, "size": 160})
    plan = Plan(finished.experiment, finished.out.relative_to(tmp_path), [0, 1])
    assert command_line(plan, source) == (
        "sp-fast experiment run 'my experiment.py' --out out --seeds 0,1 "
        "--data-root /data --quick --set size=160"
    )


def test_a_folder_without_its_data_is_reported_without_pictures(finished: Plan, tmp_path) -> None:
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    text = rendered(finished)
    assert "<img" not in text
    assert "13.0 ± 1.0" in text
