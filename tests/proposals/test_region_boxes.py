"""Boxes of selective search: inside their images, reproducible, and clear errors without it."""

import json

import numpy as np
import pytest
from PIL import Image

from sp_fast.commands import app as cli
from sp_fast.data.coco import load_coco
from sp_fast.proposals import region_boxes


@pytest.fixture
def folder(tmp_path):
    """Two images of a bright rectangle on noise, which is also a region, and one of a single pixel."""
    root = tmp_path / "images"
    root.mkdir()
    generator = np.random.default_rng(0)
    for name, size in (("a.png", (96, 200)), ("b.png", (256, 160))):
        pixels = generator.integers(0, 60, (*size, 3), np.uint8)
        pixels[20:60, 40:120] = (250, 220, 40)
        Image.fromarray(pixels).save(root / name)
    Image.new("RGB", (1, 1)).save(root / "c.png")
    return root


@pytest.fixture
def selective_search():
    cv2 = pytest.importorskip("cv2")
    if not hasattr(cv2, "ximgproc"):
        pytest.skip("OpenCV without contrib modules: no selective search")
    return region_boxes.selective_search


def test_boxes_find_the_rectangle_and_depend_on_the_seed(selective_search, folder):
    image = np.asarray(Image.open(folder / "a.png"))
    boxes = [selective_search(image, 1000, seed) for seed in (3, 3, 4)]
    assert (boxes[0] == boxes[1]).all()
    assert not np.array_equal(boxes[0], boxes[2])
    assert {*map(tuple, boxes[0].tolist())} == {*map(tuple, boxes[2].tolist())}  # only their order is random
    assert (boxes[0][:, :2] >= 0).all()
    assert (boxes[0][:, :2] + boxes[0][:, 2:] <= (200, 96)).all()
    assert (boxes[0][:, 2:] >= 1).all()
    # The search blurs the image and works on a grid of 128 x 128, so within 3 cells: 5 x 2 pixels.
    off = abs(boxes[0] - (40, 20, 80, 40)) <= (5, 3, 8, 5)
    assert off.all(1).any()
    assert len(selective_search(image, 2)) == 2


def test_command(selective_search, folder, tmp_path, monkeypatch, capsys):
    written = []
    for workers in ("1", "2"):
        out = tmp_path / f"{workers}.json"
        arguments = ["region-boxes", str(folder), "--out", str(out), "--count", "5", "--workers", workers]
        monkeypatch.setattr("sys.argv", ["sp-fast", *arguments])
        with pytest.raises(SystemExit) as stop:
            cli.run()
        shown = capsys.readouterr()
        assert not stop.value.code, shown.err
        written.append(json.loads(out.read_text()))
        assert f"3 images, {len(written[-1]['annotations'])} boxes" in shown.out
    assert written[0] == written[1]
    coco = load_coco(out, images=folder)
    for one in coco["annotations"]:
        assert one["area"] == one["bbox"][2] * one["bbox"][3]
    counts = [sum(one["image_id"] == k for one in coco["annotations"]) for k in (1, 2, 3)]
    assert counts[:2] == [5, 5]


def test_what_to_install_without_selective_search(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(region_boxes, "import_module", lambda name: object())
    monkeypatch.setattr(
        "sys.argv", ["sp-fast", "region-boxes", str(folder), "--out", str(tmp_path / "x.json")]
    )
    with pytest.raises(SystemExit) as stop:
        cli.run()
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "pip install opencv-contrib-python-headless" in error
    assert "pip uninstall -y opencv-python" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x.json").exists()


def test_bad_options(folder, tmp_path):
    for options, words in (({"count": 0}, "count: expected"), ({"workers": 0}, "workers: expected")):
        with pytest.raises(ValueError, match=words):
            region_boxes.write_region_boxes(folder, tmp_path / "x.json", **options)
