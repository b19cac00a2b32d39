"""Cityscapes in its published layout: masks known by construction, and mmdet's converter."""

import importlib.util
import json
import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from sp_fast.data.cityscapes import CLASSES, convert_cityscapes, file_name
from sp_fast.data.prepared import summary, write_checked

SIZE = (16, 32)
# Value, and the rectangle (rows, columns) that it fills: a road and a pole, cars, a group of persons, what is
# not evaluated (a caravan, a trailer, a group of caravans), and a bicycle of 1 pixel.
RECTANGLES = {
    "aachen_000000_000019": [
        (7, 0, 16, 0, 32),
        (17, 0, 4, 0, 2),
        (26000, 2, 8, 3, 9),
        (26001, 2, 8, 10, 20),
        (24, 10, 14, 0, 6),
        (29000, 10, 14, 8, 12),
        (30001, 10, 14, 12, 16),
        (29, 10, 14, 16, 18),
        (33002, 15, 16, 31, 32),
    ],
    "aachen_000001_000019": [(7, 0, 16, 0, 32)],
    "bochum_000000_000313": [(25007, 0, 16, 0, 32), (31000, 4, 8, 4, 8), (3, 0, 2, 0, 2)],
}


def ids_of(rectangles):
    ids = np.zeros(SIZE, np.uint16)
    for value, top, bottom, left, right in rectangles:
        ids[top:bottom, left:right] = value
    return ids


@pytest.fixture
def root(tmp_path):
    for split in ("train", "val", "test"):
        for name, rectangles in RECTANGLES.items():
            city = name.split("_")[0]
            images, labels = tmp_path / "leftImg8bit" / split / city, tmp_path / "gtFine" / split / city
            images.mkdir(parents=True, exist_ok=True)
            labels.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((*SIZE, 3), np.uint8)).save(images / f"{name}_leftImg8bit.png")
            Image.fromarray(ids_of(rectangles if split != "test" else [])).save(
                labels / f"{name}_gtFine_instanceIds.png"
            )
    return tmp_path


def test_masks_and_classes_are_those_of_the_labels(root):
    coco = convert_cityscapes(root, "train")
    names = [image["file_name"] for image in coco["images"]]
    assert names == [f"{name.split('_')[0]}/{name}_leftImg8bit.png" for name in RECTANGLES]
    found = [(a["image_id"], a["category_id"], a["iscrowd"], a["area"]) for a in coco["annotations"]]
    assert found == [
        (1, 24, 1, 24),
        (1, 26, 0, 36),
        (1, 26, 0, 60),
        (1, 33, 0, 1),
        (3, 25, 0, 512 - 16 - 4),
        (3, 31, 0, 16),
    ]
    ids = ids_of(RECTANGLES["aachen_000000_000019"])
    for one, value in zip(coco["annotations"], [24, 26000, 26001, 33002], strict=False):
        np.testing.assert_array_equal(coco_mask.decode(one["segmentation"]), ids == value)
    assert coco["annotations"][1]["bbox"] == [3, 2, 6, 6]
    assert {c["id"]: c["name"] for c in coco["categories"]} == CLASSES
    assert [one["id"] for one in coco["annotations"]] == [1, 2, 3, 4, 5, 6]


def test_counts_are_printed_per_class_and_size(root):
    lines = summary(convert_cityscapes(root, "val")).splitlines()
    assert lines[0] == "3 images, 1 of them without objects"
    rows = {line.split()[0]: line.split()[1:] for line in lines[2:]}
    assert rows["person"] == ["0", "0", "0", "0", "1", "1"]
    assert rows["car"] == ["2", "2", "0", "0", "0", "1"]
    assert rows["bus"] == ["0"] * 6
    assert rows["all"] == ["5", "5", "0", "0", "1", "2"]


def test_test_images_need_no_labels(root):
    assert convert_cityscapes(root, "test")["annotations"] == []
    for path in (root / "gtFine" / "test").rglob("*.png"):
        path.unlink()
    coco = convert_cityscapes(root, "test")
    assert len(coco["images"]) == 3
    write_checked(coco, root / "test.json")


@pytest.fixture
def mmdet_converter(monkeypatch):
    """The tool of mmdet; without cityscapesscripts, its table of labels is built here."""
    mmdet = pytest.importorskip("mmdet")
    try:
        import cityscapesscripts.helpers.labels  # noqa: F401
    except ImportError:
        label = namedtuple("Label", "id name hasInstances ignoreInEval")
        table = [label(k, str(k), k >= 24, k not in CLASSES) for k in range(24)]
        table += [label(k, CLASSES.get(k, str(k)), True, k not in CLASSES) for k in range(24, 34)]
        labels = ModuleType("cityscapesscripts.helpers.labels")
        labels.labels, labels.id2label = table, {one.id: one for one in table}
        helpers = ModuleType("cityscapesscripts.helpers")
        helpers.labels = labels
        monkeypatch.setitem(sys.modules, "cityscapesscripts", ModuleType("cityscapesscripts"))
        monkeypatch.setitem(sys.modules, "cityscapesscripts.helpers", helpers)
        monkeypatch.setitem(sys.modules, "cityscapesscripts.helpers.labels", labels)
    tool = Path(mmdet.__file__).parent / ".mim" / "tools" / "dataset_converters" / "cityscapes.py"
    spec = importlib.util.spec_from_file_location("cityscapes_converter", tool)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_result_is_that_of_mmdet(root, mmdet_converter):
    for split in ("train", "val"):
        files = mmdet_converter.collect_files(str(root / "leftImg8bit" / split), str(root / "gtFine" / split))
        infos = mmdet_converter.collect_annotations(sorted(files))  # theirs are in the file system's order
        mmdet_converter.cvt_annotations(infos, str(root / "theirs.json"))
        theirs = json.loads((root / "theirs.json").read_text())
        write_checked(convert_cityscapes(root, split), root / file_name(split))
        ours = json.loads((root / file_name(split)).read_text())
        for part in ("images", "annotations"):
            for one in theirs[part]:
                one["id"] += 1
        for one in theirs["annotations"]:
            one["image_id"] += 1
        assert {part: ours[part] for part in theirs} == theirs


def place(root):
    return root / "gtFine" / "train" / "aachen" / "aachen_000000_000019_gtFine_instanceIds.png"


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (np.full(SIZE, 40, np.uint16), r"instanceIds\.png: pixel value 40: expected a label"),
        (np.full(SIZE, 34001, np.uint16), r"instanceIds\.png: pixel value 34001: expected a label"),
        (np.full(SIZE, 26, np.uint8), r"instanceIds\.png: expected a 16-bit gray PNG.*mode L"),
        (np.zeros((8, 8), np.uint16), r"instanceIds\.png: \[8, 8\] .*but its image is \[16, 32\]"),
    ],
)
def test_broken_labels_are_named(root, ids, message):
    Image.fromarray(ids).save(place(root))
    with pytest.raises(ValueError, match=message):
        convert_cityscapes(root, "train")


def test_missing_and_truncated_files_are_named(root):
    data = place(root).read_bytes()
    place(root).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"aachen_000000_000019_gtFine_instanceIds\.png: "):
        convert_cityscapes(root, "train")
    place(root).unlink()
    with pytest.raises(FileNotFoundError, match=r"1 label files are missing: gtFine/train/aachen/aachen_0"):
        convert_cityscapes(root, "train")
    with pytest.raises(FileNotFoundError, match="no images named"):
        convert_cityscapes(root / "gtFine", "train")
    with pytest.raises(ValueError, match="split: expected one of train, val, test"):
        file_name("all")
