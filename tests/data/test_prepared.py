"""Annotation files are checked before they are in place; images may lie in several folders."""

import json

import pytest

from sp_fast.data.coco import load_coco
from sp_fast.data.folders import place_in_folders
from sp_fast.data.prepared import check_outputs, listed, summary, write_checked


def test_a_bad_file_is_not_written(scenes):
    coco = load_coco(scenes / "masks.json")
    out = scenes / "out.json"
    coco["annotations"][1]["id"] = coco["annotations"][0]["id"]
    with pytest.raises(ValueError, match=r"out\.json: pycocotools finds 4 annotations, expected 5"):
        write_checked(coco, out)
    coco = load_coco(scenes / "masks.json")
    coco["images"][0]["height"] = 30
    with pytest.raises(ValueError, match=r"annotation \d as a mask of \[32, 48\], expected \[30, 48\]"):
        write_checked(coco, out)
    assert sorted(path.name for path in scenes.iterdir()) == [
        "images",
        "masks.json",
        "masks.seeds.safetensors",
    ]


def test_existing_files_are_kept(scenes):
    check_outputs([scenes / "new.json"], overwrite=False)
    check_outputs([scenes / "masks.json"], overwrite=True)
    with pytest.raises(FileExistsError, match=r"masks\.json already exists"):
        check_outputs([scenes / "new.json", scenes / "masks.json"], overwrite=False)
    with pytest.raises(ValueError, match=r"a separate file for each output, got .*new\.json twice"):
        check_outputs([scenes / "new.json", scenes / "images" / ".." / "new.json"], overwrite=True)
    with pytest.raises(IsADirectoryError, match="got the folder"):
        check_outputs([scenes / "images"], overwrite=True)


def test_the_summary_counts_by_size():
    sides = {1: [31, 32, 95, 96], 2: [10]}
    coco = {
        "images": [{"id": 1}, {"id": 2}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"image_id": 1, "category_id": category, "area": side**2, "iscrowd": category - 1}
            for category, of_class in sides.items()
            for side in of_class
        ],
    }
    assert [line.split() for line in summary(coco).splitlines()[1:]] == [
        ["class", "objects", "small", "medium", "large", "crowds", "images"],
        ["cat", "4", "1", "2", "1", "0", "1"],
        ["dog", "0", "0", "0", "0", "1", "1"],
        ["all", "4", "1", "2", "1", "1", "1"],
    ]


def test_images_in_several_folders(scenes):
    (scenes / "more" / "deep").mkdir(parents=True)
    (scenes / "images" / "1.png").rename(scenes / "more" / "deep" / "1.png")
    folders = [scenes / "images", scenes / "more" / "deep"]
    coco = load_coco(scenes / "masks.json")
    assert place_in_folders(coco, folders) == scenes
    assert [image["file_name"] for image in coco["images"]] == [
        "images/0.png",
        "more/deep/1.png",
        "images/2.png",
    ]
    write_checked(coco, scenes / "out.json")
    load_coco(scenes / "out.json", scenes)


def test_missing_and_ambiguous_images_are_named(scenes):
    (scenes / "more").mkdir()
    text = (scenes / "masks.json").read_text()
    with pytest.raises(FileNotFoundError, match=r"3 images are in none of .*: 0\.png, 1\.png, 2\.png"):
        place_in_folders(json.loads(text), [scenes / "more"])
    (scenes / "more" / "2.png").touch()
    with pytest.raises(ValueError, match=r"1 names are in more than one of .*: 2\.png"):
        place_in_folders(json.loads(text), [scenes / "images", scenes / "more"])
    with pytest.raises(FileNotFoundError, match="no such folder of images"):
        place_in_folders(json.loads(text), [scenes / "none"])


def test_long_lists_are_cut():
    assert listed("abc") == "a, b, c"
    assert listed("abcdefg") == "a, b, c, d, e and 2 more"
