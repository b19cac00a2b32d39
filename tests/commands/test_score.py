"""The command `sp-fast score`: what it prints and writes, and how it fails."""

import json
from functools import partial

import numpy as np
import pytest
from PIL import Image

from sp_fast.drawing import number
from sp_fast.proposals import comparison
from tests.proposals.test_scores import coco

BOXES = {f"{k}.png": [(20 + k, 20, 60, 60), (120, 120, 20, 20 + k)] for k in range(5)}


@pytest.fixture
def score(command):
    """Runs the command; returns exit status, standard output and standard error."""
    return partial(command, "score")


@pytest.fixture
def objects(tmp_path):
    return coco(tmp_path / "objects.json", BOXES)


def test_one_file(score, objects):
    code, out, _ = score(objects, "--annotations", objects)
    assert code == 0
    assert "1.000 100.0%" in out  # every mask is its own best
    assert "10 objects in 5 of 5 annotated images" in out
    assert "strips along the border" in out
    code, _, err = score(objects.with_name("none.json"), "--annotations", objects)
    assert code == 2
    assert "no such annotation file" in err


def test_files_side_by_side_within_80_columns(score, objects, tmp_path):
    old = coco(tmp_path / "a_file_with_a_long_name.json", {name: boxes * 30 for name, boxes in BOXES.items()})
    new = coco(tmp_path / "new.json", {name: boxes[:1] for name, boxes in BOXES.items()})
    code, out, _ = score(old, new, "--annotations", objects)
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "1: a_file_with_a_long_name.json\n2: new.json\n" in out
    assert "60.0" in out
    assert out.count("0.500 50.0%") == 1  # new.json has one mask for each two objects
    assert "first 40" in out
    assert "first 100" not in out
    assert 'A file has no line "first 20" if none of its images has more' in out
    assert "has no line" not in score(old, old, "--annotations", objects)[1]


def test_without_annotations(score, objects, tmp_path):
    numbers = tmp_path / "scores.json"
    code, out, _ = score(objects, "--json", numbers)
    assert code == 0
    assert "5 images\n" in out
    assert "AR10" not in out
    found = json.loads(numbers.read_text())
    assert found["images"] == 5
    one = coco(tmp_path / "one.json", {"0.png": BOXES["0.png"]})
    assert score(one)[1].rstrip().endswith("\n1 image")
    assert found["files"][0]["masks"] == 10
    assert "average_recall" not in found["files"][0]


def test_numbers_as_json(score, objects, tmp_path):
    numbers = tmp_path / "scores.json"
    assert score(objects, "--annotations", objects, "--json", numbers)[0] == 0
    found = json.loads(numbers.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    one = found["files"][0]
    assert one["average_recall"] == {"10": 1, "20": 1, "100": 1}
    assert one["coverage"]["all"]["large"] == {"objects": 0, "mean_best_iou": None, "above_half": None}
    assert one["by_rank"]["above_half"]["by_score"][:2] == [0.5, 1]
    assert one["by_image"]["0.png"] == {"first": 1, "all": 1}


@pytest.mark.parametrize("annotated", [True, False])
def test_page(score, objects, tmp_path, annotated):
    pytest.importorskip("matplotlib")
    folder, page = tmp_path / "images", tmp_path / "page.html"
    folder.mkdir()
    for name in BOXES:
        Image.new("RGB", (200, 200), "gray").save(folder / name)
    new = coco(tmp_path / "new.json", {name: boxes[:1] for name, boxes in BOXES.items()})
    given = [objects, new, "--images", folder, "--page", page, "--samples", 3]
    given += ["--annotations", objects] if annotated else []
    code, out, _ = score(*given)
    assert code == 0
    assert f"Wrote {page}" in out
    html = page.read_text()
    assert html.count("<figure>") == 3 * 3  # three images; objects or image, and two files
    assert html.count("<svg") == (2 if annotated else 0)
    assert ("Worst images" in html) == annotated
    assert ("Sample images" in html) != annotated
    assert "://" not in html.replace("http://www.w3.org", "")
    code, _, err = score(*given)
    assert code == 2
    assert f"--page: {page} exists; add --overwrite to replace it" in err
    assert score(*given, "--overwrite")[0] == 0


def test_bad_input(score, objects, tmp_path):
    for given, message in (
        (["--images", tmp_path], "--images: expected --page as well"),
        (["--images", tmp_path / "no", "--page", tmp_path / "p.html"], "--images: expected the folder"),
        (["--json", tmp_path], "--json: expected a file, got the folder"),
        (["--samples", 0], "--samples"),
    ):
        code, out, err = score(objects, *given)
        assert (code, out) == (2, "")
        assert message in err
    assert list(tmp_path.iterdir()) == [objects]


def test_missing_images_are_named_before_the_scores(score, objects, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(comparison, "summarize", lambda *_: pytest.fail("computed"))
    folder, page = tmp_path / "images", tmp_path / "page.html"
    folder.mkdir()
    given = [objects, "--images", folder, "--page", page]
    code, _, err = score(*given)
    assert code == 2
    assert (
        f"--images: none of the 5 images of objects.json is in {folder}: expected files such as 0.png" in err
    )
    (folder / "0.png").touch()
    assert f"--images: {folder} lacks 4 of the 5 images of objects.json, such as 1.png" in score(*given)[2]
    few = coco(tmp_path / "few.json", {"0.png": BOXES["0.png"]})
    (folder / "0.png").unlink()
    _, _, err = score(*given, "--annotations", few)  # the only image that counts
    assert f"--images: the image of objects.json is not in {folder}: expected files such as 0.png" in err
    assert not page.exists()


def test_an_image_that_does_not_fit_leaves_no_page(score, objects, tmp_path):
    pytest.importorskip("matplotlib")
    folder, page = tmp_path / "images", tmp_path / "page.html"
    folder.mkdir()
    for name in BOXES:
        Image.new("RGB", (100, 200)).save(folder / name)
    code, _, err = score(objects, "--images", folder, "--page", page)
    assert code == 2
    assert "expected 200 x 200 pixels" in err
    assert not page.exists()


def test_numbers_are_written_where_their_masks_are_seen():
    masks = np.zeros((2, 100, 100), dtype=bool)
    masks[0, :, :60] = True  # the second mask hides its left part
    masks[1, :, :30] = True
    blank = np.full((200, 200, 3), 128, dtype=np.uint8)
    changed = [
        np.nonzero((number(blank, masks[:count]) != blank).any(axis=(0, 2)))[0].mean() / 2 for count in (1, 2)
    ]
    assert changed[0] == pytest.approx(30, abs=3)
    assert changed[1] == pytest.approx((45 + 15) / 2, abs=3)
