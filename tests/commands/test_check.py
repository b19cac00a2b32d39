"""The command `sp-fast check`: exit status, what it prints and writes, bad input."""

import json
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from sp_fast.data.faults import KINDS, NOTE
from tests.data.test_check import good_set, write


@pytest.fixture
def check(command):
    """Runs the command; returns exit status, standard output and standard error."""
    return partial(command, "check")


def test_good_data_exit_with_0_and_a_page(check, tmp_path):
    coco = good_set(tmp_path)
    coco["annotations"][0]["area"] = 0
    path, page = write(coco, tmp_path), tmp_path / "page.html"
    code, out, _ = check(path, "--images", tmp_path / "images", "--out", page)
    assert code == 0
    assert "0 errors, 1 warning\n" in out
    assert max(map(len, out.replace(str(tmp_path), "").splitlines())) <= 80
    html = page.read_text()
    assert html.count("<figure>") == 5  # four samples and the image with the fault
    assert "://" not in html
    code, _, err = check(path, "--images", tmp_path / "images", "--out", page)
    assert code == 2
    assert "--overwrite" in err
    assert check(path, "--images", tmp_path / "images", "--out", page, "--overwrite")[0] == 0


def test_the_largest_image_is_an_option(check, tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # restored afterwards
    coco = good_set(tmp_path)
    place, first = tmp_path / "images", coco["images"][0]
    first["height"], first["width"] = 1100, 1000
    Image.new("RGB", (1000, 1100)).save(place / first["file_name"])
    path = write(coco, tmp_path)
    code, out, _ = check(path, "--images", place, "--max-megapixels", "1")
    assert code == 1
    assert "more than 1 megapixels; --max-megapixels raises the limit" in " ".join(out.split())
    _, out, _ = check(path, "--images", place, "--max-megapixels", "2")
    assert "megapixels" not in out
    code, _, err = check(path, "--images", place, "--max-megapixels", "0")
    assert code == 2
    assert "max_megapixels: expected a number above 0, got 0" in err


def test_errors_exit_with_1_and_still_write_the_page(check, tmp_path):
    coco = good_set(tmp_path)
    for one in coco["annotations"]:
        one["iscrowd"] = "0"
    (tmp_path / "images" / "2.png").write_bytes(b"no image")
    page = tmp_path / "page.html"
    code, out, _ = check(write(coco, tmp_path), "--images", tmp_path / "images", "--out", page)
    assert code == 1
    assert "values of a wrong type (8)" in out
    assert "and 5 more" in out
    assert "9 errors, 0 warnings" in out
    assert page.is_file()


def test_other_formats_are_converted(check, tmp_path):
    good_set(tmp_path)
    labels, out = tmp_path / "labels", tmp_path / "train.json"
    labels.mkdir()
    (labels / "0.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    (labels / "classes.txt").write_text("cat\n")
    code, _, _ = check(labels, "--images", tmp_path / "images", "--convert", out)
    assert code == 0
    coco = json.loads(out.read_text())
    assert (len(coco["images"]), len(coco["annotations"])) == (4, 1)
    assert check(out, "--images", tmp_path / "images")[0] == 0
    (labels / "1.txt").write_text("0 nan 0.1 0.5 0.1 0.5 0.5\n")
    out = tmp_path / "again.json"
    code, said, _ = check(labels, "--images", tmp_path / "images", "--convert", out)
    assert code == 1
    assert "is not written" in said
    assert not out.exists()


def test_objects_of_missing_images_are_counted(check, tmp_path):
    coco = good_set(tmp_path)
    path, images = write(coco, tmp_path), tmp_path / "images"
    _, out, _ = check(path, "--images", images)
    assert "not measured" not in out
    page = tmp_path / "page.html"
    for k, said in enumerate(("add the file", "add the file", " lacks 3 of 4", " lacks 4 of 4")):
        (images / f"{k}.png").unlink()
        code, out, _ = check(path, "--images", images, "--out", page, "--overwrite")
        assert code == 1
        assert f"; {2 * (k + 1)} not measured: image missing or wrong" in " ".join(out.split())
        assert said in " ".join(out.split())
        assert said in page.read_text()


def test_long_findings_are_indented_and_names_whole(check, tmp_path):
    coco = good_set(tmp_path)
    name = f"{'a-long-name-' * 10}.png"
    coco["images"][0]["file_name"] = name
    _, out, _ = check(write(coco, tmp_path), "--images", tmp_path / "images")
    start = out.index("error: images missing")
    first, *more = out[start : out.index("To mend", start)].splitlines()[1:-1]
    assert first == "  image 1"
    assert all(line.startswith("    ") for line in more)
    assert f"({name})" in out


def test_yolo_without_names_of_classes(check, tmp_path):
    good_set(tmp_path)
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "0.txt").write_text("3 0.1 0.1 0.5 0.1 0.5 0.5\n")
    code, out, err = check(labels, "--images", tmp_path / "images")
    assert code == 0
    assert "class 3 1" in out
    assert f"classes without names: class 3; name them in {labels}/classes.txt" in err
    assert "or in data.yaml" in err
    config = tmp_path / "data.yaml"
    config.write_text("names: [cat]\n")
    assert f"class 3; name them in {config}" in check(labels, "--images", tmp_path / "images")[2].replace(
        f"{labels}/../", f"{tmp_path}/"
    )
    config.write_text("names: [cat, dog, cow, pig]\n")
    assert "without names" not in check(labels, "--images", tmp_path / "images")[2]


def test_class_names_that_look_like_markup(check, tmp_path):
    coco = good_set(tmp_path)
    coco["categories"][0]["name"] = "[/cat]"
    code, out, _ = check(write(coco, tmp_path), "--images", tmp_path / "images")
    assert code == 0
    assert "[/cat]" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.json", "--images", "images"], "no such labels: none.json"),
        (["ann.json", "--images", "none"], "expected a folder of images, got none"),
        (["ann.json", "--images", "images", "--val-images", "images"], "--val-images: expected --val"),
        (["ann.json", "--images", "images", "--convert", "b.json"], "--convert: expected labels in another"),
        (["images", "--images", "images"], "expected labels of YOLO"),
        (["images", "--images", "images", "--format", "kitti"], "format: expected auto, coco"),
    ],
)
def test_bad_input_exits_with_2(arguments, message, check, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(good_set(tmp_path), tmp_path)
    code, _, err = check(*arguments)
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1


def test_every_kind_of_fault_is_documented():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    rows = [f"| {kind.severity} | {kind.title} | {kind.mend} |" for kind in KINDS.values()]
    documented = [row for row in rows if row in page]
    assert documented == [row for row in rows if not row.startswith(f"| {NOTE}")]


def test_control_characters_of_names_are_escaped(check, tmp_path):
    coco = good_set(tmp_path)
    coco["images"][0]["file_name"] = "a\n\x1b[31m\u202eb\u00fc.jpg"
    _, out, err = check(write(coco, tmp_path), "--images", tmp_path / "images")
    assert "\x1b" not in out + err
    assert r"a\n\x1b[31m\u202ebü.jpg" in out
