"""Learning curves."""

import re
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from sp_fast.experiments.curves import panels, style, svg, write_png
from sp_fast.experiments.plan import Plan
from sp_fast.experiments.results import collect
from sp_fast.plots import COLOURS
from tests.experiments import made_up


def test_curves_are_mean_and_range_over_seeds(finished: Plan) -> None:
    found = panels(collect(finished))
    assert [panel.title for panel in found] == [
        "Fine-tuned on 10 %: AP",
        "Fine-tuned on 100 %: AP",
        "Pre-training: loss",
    ]
    curve = found[0].curves[0]
    assert (curve.row, curve.steps) == ("none", [10, 20, 30, 40])
    np.testing.assert_allclose(curve.mean, [3.25, 6.5, 9.75, 13])
    np.testing.assert_allclose(curve.low, [3, 6, 9, 12])
    np.testing.assert_allclose(curve.high, [3.5, 7, 10.5, 14])
    # The row without pre-training has no loss of it.
    assert [curve.row for curve in found[2].curves] == ["labels", "prompts"]


def test_steps_that_a_seed_lacks_are_left_out(finished: Plan) -> None:
    results = collect(finished)
    runs = results["rows"]["none"]["trainings"]["10 %"]["curves"]
    del runs["1"][1]
    runs["2"][0][made_up.AP] = None
    assert panels(results)[0].curves[0].steps == [30, 40]


def test_each_row_has_a_line_of_its_own() -> None:
    styles = [style(position) for position in range(3 * len(COLOURS))]
    assert len(set(styles)) == len(styles)


def test_svg_draws_each_curve_in_its_colour_and_text_in_that_of_the_page(finished: Plan) -> None:
    rows = {"none": "none", "labels": "labels", "prompts": "prompts"}
    drawn = [svg(panel, rows) for panel in panels(collect(finished))]
    assert drawn[0] == svg(panels(collect(finished))[0], rows)
    for text in drawn:
        ElementTree.fromstring(text)
        assert "currentColor" in text
        assert all("www.w3.org" in link for link in re.findall(r"https?:[^\"]*", text))
        assert not re.search(r'<svg[^>]* (width|height)="', text)
    assert [colour in drawn[0] for colour in COLOURS[:4]] == [True, True, True, False]
    assert COLOURS[0] not in drawn[2]
    ids = re.findall(r' id="([^"]+)"', "".join(drawn))
    assert ids
    assert len(set(ids)) == len(ids)


def test_png_is_written_with_and_without_curves(finished: Plan, tmp_path) -> None:
    results = collect(finished)
    for row in results["rows"].values():
        row["label"] = "a long label of many words, as an ablation has"
    write_png(results, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.width > image.height > 300
    write_png(collect(Plan(finished.experiment, tmp_path / "empty", [0])), tmp_path / "none.png")
    assert (tmp_path / "none.png").is_file()
