"""Random boxes: inside their images, reproducible from a seed, and readable like any COCO file."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from sp_fast.commands import app as cli
from sp_fast.data.coco import load_coco
from sp_fast.data.store import open_store
from sp_fast.proposals.random_boxes import draw_boxes, draw_patches, write_random_boxes


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "images"
    (root / "more").mkdir(parents=True)
    for name, size in (("a.png", (64, 48)), ("more/b.png", (5, 100)), ("c.png", (640, 480))):
        Image.new("RGB", size).save(root / name)
    return root


@pytest.mark.parametrize("draw", [draw_boxes, draw_patches])
@pytest.mark.parametrize("size", [(48, 64), (3, 200), (1, 1)])
def test_boxes_lie_inside_and_have_a_size(size, draw):
    boxes = draw(*size, 500, np.random.default_rng(0))
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, :2] + boxes[:, 2:] <= np.array(size[::-1])).all()
    assert (boxes[:, 2:] >= np.minimum(8, size[::-1])).all()
    if min(size) > 8:
        assert len(np.unique(boxes, axis=0)) > 400


def test_patches_follow_the_rule_of_up_detr():
    """On a small image, every side and corner of get_random_patch_from_img occurs, and no other."""
    height, width = 18, 20
    boxes = draw_patches(height, width, 20000, np.random.default_rng(0))
    drawn = {(x, w) for x, _, w, _ in boxes.tolist()}, {(y, h) for _, y, _, h in boxes.tolist()}
    for side, found in zip((width, height), drawn, strict=True):
        # np.random.randint(8, side - 8 + 1), then np.random.randint(side - its size)
        assert found == {(x, size) for size in range(8, side - 7) for x in range(side - size)}
    # Sides are uniform: 5 of 20 pixels wide occur 4,000 times each, with a standard deviation of 57.
    assert abs(np.unique(boxes[:, 2], return_counts=True)[1] - 4000).max() < 400


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


def test_the_store_holds_what_the_json_file_does(folder, tmp_path):
    pytest.importorskip("pyarrow")
    out = tmp_path / "out.json"
    write_random_boxes(folder, out, count=5)
    store, coco = open_store(out), load_coco(out)
    assert store.images_checked
    assert store.file_names() == [image["file_name"] for image in coco["images"]]
    masks = [one for row in range(len(store)) for one in store.entry(row)[1]]
    for key in ("image_id", "segmentation", "bbox", "area"):
        assert [one[key] for one in masks] == [one[key] for one in coco["annotations"]]
    out.unlink()
    with pytest.raises(FileExistsError, match=r"out\.arrow already exists"):
        write_random_boxes(folder, out)


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
    arguments = ["sp-fast", "random-boxes", str(folder), "--out", str(out)]
    for more, code, words in (
        (["--count", "3"], 0, "3 images, 9 boxes"),
        ([], 2, "already exists"),
        (["--kind", "up-detr", "--overwrite"], 0, "3 images, 30 boxes"),
    ):
        monkeypatch.setattr("sys.argv", [*arguments, *more])
        with pytest.raises(SystemExit) as stop:
            cli.run()
        assert (stop.value.code or 0) == code
        shown = capsys.readouterr()
        assert words in shown.out + shown.err
    assert json.loads(out.read_text())["info"]["kind"] == "up-detr"
    with pytest.raises(ValueError, match="kind: expected 'uniform' or 'up-detr', got 'detr'"):
        write_random_boxes(folder, tmp_path / "none.json", kind="detr")
