"""Random boxes: inside their images, reproducible from a seed, and readable like any COCO file."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from sp_fast import cli
from sp_fast.data.coco import load_coco
from sp_fast.proposals.random_boxes import draw_boxes, write_random_boxes


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    (root / "more").mkdir(parents=True)
    for name, size in (("a.png", (64, 48)), ("more/b.png", (5, 100)), ("c.png", (640, 480))):
        Image.new("RGB", size).save(root / name)
    return root


@pytest.mark.parametrize("size", [(48, 64), (3, 200), (1, 1)])
def test_boxes_lie_inside_and_have_a_size(size):
    boxes = draw_boxes(*size, 500, np.random.default_rng(0))
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= np.array(size[::-1])).all()
    assert (boxes[:, 2:] >= np.minimum(8, size[::-1])).all()
    if min(size) > 8:
        assert len(np.unique(boxes, axis=0)) > 400


def test_written_masks_are_the_boxes(folder, tmp_path):
    images, broken = write_random_boxes(folder, tmp_path / "out.json", count=5)
    assert (images, len(broken)) == (3, 0)
    coco = load_coco(tmp_path / "out.json", images=folder)
    owners = [annotation["image_id"] for annotation in coco["annotations"]]
    assert owners == [image["id"] for image in coco["images"] for _ in range(5)]
    for annotation in coco["annotations"]:
        mask = coco_mask.decode(annotation["segmentation"])
        x, y, w, h = annotation["bbox"]
        assert mask.sum() == annotation["area"] == w * h
        assert mask[y : y + h, x : x + w].all()


def test_boxes_depend_on_the_seed(folder, tmp_path):
    texts = []
    for i, seed in enumerate((0, 0, 1)):
        write_random_boxes(folder, tmp_path / f"{i}.json", seed=seed)
        texts.append(json.loads((tmp_path / f"{i}.json").read_text())["annotations"])
    assert texts[0] == texts[1] != texts[2]


def test_broken_image_is_skipped_and_reported(folder, tmp_path):
    for i in range(30):
        Image.new("RGB", (9, 9)).save(folder / f"good{i}.png")
    (folder / "bad.png").write_bytes(b"no image")
    images, broken = write_random_boxes(folder, tmp_path / "out.json")
    assert images == 33
    assert "bad.png" in broken.report()
    for path in folder.glob("good*"):
        path.unlink()
    with pytest.raises(ValueError, match="More than 5%"):
        write_random_boxes(folder, tmp_path / "again.json")
    assert not (tmp_path / "again.json").exists()


def test_command(folder, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out.json"
    arguments = ["random-boxes", str(folder), "--out", str(out), "--count", "3"]
    monkeypatch.setattr("sys.argv", ["sp-fast", *arguments])
    for code, words in ((0, "3 images, 9 boxes"), (2, "already exists")):
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert (stop.value.code or 0) == code
        shown = capsys.readouterr()
        assert words in shown.out + shown.err
