"""The page, and the pictures on it."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from sp_fast.drawing import overlay
from sp_fast.experiments.page import page
from sp_fast.experiments.pictures import Picture, prediction_samples, proposal_samples
from sp_fast.experiments.plan import Plan
from sp_fast.experiments.report import command_line, write_report
from sp_fast.experiments.results import collect, read_times
from sp_fast.experiments.store import Source
from sp_fast.experiments.use import Use, use
from sp_fast.files import write_json
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


def rendered(plan: Plan, use: Use | None = None) -> str:
    return page(plan, collect(plan), read_times(plan), "sp-fast experiment run made_up --out 'a b'", use)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def html(folder: Path) -> str:
    """The page of the finished experiment."""
    images = folder / "images"
    made_up.write_images(images)
    plan = Plan(made_up.experiment(images), folder / "out", [0, 1, 2])
    for run in plan.runs.values():
        made_up.finish(plan, run, images)
    return rendered(plan, Use("The best model.", ["sp-fast predict 'a b' photos", "sp-fast export 'a b'"]))


@pytest.fixture(scope="module")
def text(html: str) -> str:
    return " ".join(Tags(html).text.split())


def test_the_page_holds_the_numbers_the_settings_and_the_environment(text: str) -> None:
    for part in (
        "Made-up <numbers>",
        "Mean ± standard deviation over seeds 0, 1, 2; 25 of 25 runs finished.",
        "no pre-training 13.0 ± 1.0 26.0 ± 2.0 3",
        "saliency prompts 25.0 ± 1.0 50.0 ± 2.0 3 paper 23.5 41.0",
        "Pre-training helps: saliency prompts − no pre-training = +4.0 ± 0.0 AP (higher, p < 0.001, 3 seeds)",
        "saliency masks of labels, prompts 2.0 0.75 (50%) 0.75 (50%) - -",
        "model.prompts.strategy = none",
        "config = demo/finetune",
        "Made up & small.",
        made_up.HASH[:16],
        # The most memory of three seeds.
        "9 of 9 6:40 1.2 GB",
        "a processor 1 2.14 3.11 - 1.5 abc1234 25",
        # Proposals of 60 s, 6 pre-trainings of 200 s, 9 fine-tunings of 400 s and 9 of 800 s.
        "together took 3:21:00",
        "Use the model The best model. sp-fast predict 'a b' photos sp-fast export 'a b'",
        "Make it again sp-fast experiment run made_up --out 'a b'",
    ):
        assert part in text
    assert "secret-host" not in text


def test_the_page_holds_values_by_size_and_class(text: str) -> None:
    for part in (
        "Fine-tuned on 10 % small: 6 medium: 0 large: 0 AP AR AP AR AP AR",
        "no pre-training 15.0 ± 1.0 23.0 ± 1.0 - - - -",
        "class objects no pre-training pseudo labels [alone] saliency prompts AP AP50 AR AP AP50 AR",
        "cat 3 15.0 ± 1.0 26.0 ± 2.0 23.0 ± 1.0 18.0 ± 1.0",
        "dog & co 2 13.0 ± 1.0 26.0 ± 2.0 23.0 ± 1.0 16.0 ± 1.0",
    ):
        assert part in text
    assert text.index("cat 3 15.0") < text.index("dog & co 2 13.0")


def test_the_page_needs_nothing_else(html: str, folder: Path) -> None:
    links = Tags(html).links
    assert all(link.startswith(("data:image/webp;base64,", "#")) for link in links)
    # Plain images and masks of 2 images; objects, and 3 rows after 2 trainings, of 3 images.
    assert len([link for link in links if link.startswith("data:")]) == 2 * 2 + 3 * 2 * 4
    assert all("www.w3.org" in link for link in re.findall(r"https?:[^\"]*", html))
    assert "<script" not in html
    assert str(folder) not in html


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


def test_classes_with_few_objects_are_folded(finished: Plan) -> None:
    for run in finished.runs.values():
        result = run.result()
        if "details" in result:
            one = result["details"]["classes"]["cat"]
            many = {f"class {k}": {**one, "objects": 100 - k} for k in range(80)}
            result["details"]["classes"] = many
            (run.folder / "result.json").write_text(json.dumps(result))
    text = rendered(finished)
    plain = " ".join(Tags(text).text.split())
    assert plain.count("65 classes with fewer objects") == 2
    assert plain.index("class 14 86 ") < plain.index("65 classes") < plain.index("class 15 85 ")
    assert len(text) < 2_000_000


def test_the_images_are_the_best_the_typical_and_the_worst(finished: Plan, tmp_path) -> None:
    for row in ("none", "labels", "prompts"):
        path = finished.of(row, "10 %", 0).folder / "predictions.segm.json"
        # Image 2: both objects exactly. 1: the first exactly. 3: a mask of another class counts nothing.
        found = [
            (2, 1, (2, 3, 20, 20)),
            (2, 2, (30, 10, 25, 25)),
            (1, 1, (2, 3, 20, 20)),
            (3, 2, (2, 3, 20, 20)),
        ]
        masks = [{"image_id": k, "category_id": c, "score": 0.25, **made_up.mask(box)} for k, c, box in found]
        path.write_text(json.dumps(masks))
    objects, first, *_ = prediction_samples(finished, "10 %")
    assert [picture.note for picture in objects.pictures] == ["best", "typical", "worst"]
    assert [picture.note for picture in first.pictures] == ["IoU 1.00", "IoU 0.50", "IoU 0.00"]
    assert [name for _, name in objects.pictures[0].masks] == ["cat", "dog & co"]
    assert [name for _, name in first.pictures[0].masks] == ["cat 0.25", "dog & co 0.25"]
    colours = [[colour for colour, _ in strip.pictures[0].masks] for strip in (objects, first)]
    assert colours[0] == colours[1]


def test_without_classes_no_names_are_written(finished: Plan) -> None:
    for run in finished.runs.values():
        result = run.result()
        if "details" in result:
            result["details"]["classes"] = {}
            (run.folder / "result.json").write_text(json.dumps(result))
    assert not any(p.masks for strip in prediction_samples(finished, "10 %") for p in strip.pictures)


def test_the_commands_use_the_best_model(finished: Plan, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = use(finished, collect(finished))
    # 26 with seed 2.
    assert found.model == (
        "The model with the highest AP of all runs, 26.0: seed 2, saliency prompts: fine-tune on 100 %."
    )
    folder = finished.of("prompts", "100 %", 2).folder.relative_to(tmp_path)
    assert found.commands == [
        f"sp-fast predict {folder} photos --out found",
        f"sp-fast evaluate {folder} --images images --annotations images/truth.json",
        f"sp-fast export {folder} --format onnx --out model.onnx",
    ]
    (finished.out / "model.pth").touch()
    found = use(finished, collect(finished))
    assert found.commands[0] == "sp-fast predict out/model.pth photos --out found"


def test_no_model_no_commands(plan: Plan) -> None:
    assert use(plan, collect(plan)) is None


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


def test_exif_orientation_follows_the_masks(finished: Plan, tmp_path) -> None:
    orientation = Image.Exif()
    orientation[0x0112] = 6  # applied, the image would be 60 pixels high and 40 wide
    for path in (tmp_path / "images").glob("*.png"):
        with Image.open(path) as image:
            image.save(path, exif=orientation)
    proposals = {"masks": finished.of("prompts", "proposals", 0)}
    for strip in prediction_samples(finished, "10 %") + proposal_samples(proposals, 2):
        assert {decoded(picture).shape for picture in strip.pictures} == {(240, 360, 3)}


def decoded(picture: Picture) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(picture.uri.split(",")[1]))) as image:
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
    assert "\n\nMade up & small.\n\n" in text
    assert "| grid\\_size | 4 | given; the paper's: 10\\|20 |\n" in text
    assert "25.0 ± 1.0" in console.file.getvalue()


def test_the_report_says_if_runs_were_made_by_several_versions(finished: Plan) -> None:
    console = Console(file=io.StringIO(), width=300)
    write_report(finished, Source("demo"), console)
    assert "several versions" not in console.file.getvalue()
    times = next(run for run in finished.runs.values() if run.finished).folder / "times.json"
    write_json({**json.loads(times.read_text()), "revision": "0123abc"}, times)
    write_report(finished, Source("demo"), console)
    assert "1.5 at commit 0123abc, 1.5 at commit abc1234. Their defaults" in console.file.getvalue()
    assert "several versions of sp_fast" in (finished.out / "report.md").read_text()


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
