"""Annotation files: errors name the file and the entry."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco_mask

from sp_fast.data.coco import load_coco, save_coco
from sp_fast.data.rle import rle_pixels, to_rle


def encode(mask):
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def good():
    mask = np.zeros((6, 8), bool)
    mask[1:4, 2:7] = True
    runs = {"size": [6, 8], "counts": [10, 5, 33]}
    return {
        "images": [{"id": 3, "file_name": "a.jpg", "height": 6, "width": 8}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 7, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 3, "category_id": 7, "segmentation": encode(mask)},
            {"id": 2, "image_id": 3, "category_id": 1, "segmentation": runs},
            {"id": 5, "image_id": 3, "category_id": 1, "segmentation": [[1, 1, 5, 1, 5, 4, 1, 4]]},
        ],
    }


def write(coco, folder):
    path = folder / "ann.json"
    path.write_text(coco if isinstance(coco, str) else json.dumps(coco))
    return path


def test_good_file_is_read_and_completed(tmp_path):
    coco = load_coco(write(good(), tmp_path))
    first, second, third = coco["annotations"]
    assert first["bbox"] == [2, 1, 5, 3]
    assert first["area"] == 15
    assert (second["area"], second["iscrowd"]) == (5, 0)
    assert third["area"] == coco_mask.area(to_rle(third["segmentation"], 6, 8)) == 12


def drop(part, key):
    def change(coco):
        del coco[part][0][key]

    return change


def put(part, key, value, index=0):
    def change(coco):
        coco[part][index][key] = value

    return change


def bad_counts(value):
    return put("annotations", "segmentation", {"size": [6, 8], "counts": value})


def pop(key):
    return lambda coco: coco.pop(key)


BAD = {
    "no annotations": (pop("annotations"), "annotations: expected a list .* got no such key"),
    "no categories": (pop("categories"), "categories: expected a list .* got no such key"),
    "empty categories": (
        lambda coco: coco.update(categories=[], annotations=[]),
        "categories: expected at least one category",
    ),
    "images not a list": (lambda coco: coco.update(images={}), "images: expected a list, got a dict"),
    "image not a dict": (lambda coco: coco["images"].insert(0, 4), r"images\[0\]: expected a dict, got 4"),
    "image without width": (
        drop("images", "width"),
        r"image 3 \(a\.jpg\): width: expected .* got no such key",
    ),
    "annotation without mask": (
        drop("annotations", "segmentation"),
        r"annotation 1 \(a\.jpg\): segmentation: expected polygons or run lengths, got no such key",
    ),
    "image of height 0": (put("images", "height", 0), r"image 3 \(a\.jpg\): height: expected .* got 0"),
    "unknown category": (
        put("annotations", "category_id", 9),
        r"annotation 1 \(a\.jpg\): category_id: expected an id of 'categories', got 9",
    ),
    "unknown image": (
        put("annotations", "image_id", 4),
        "annotation 1: image_id: expected an id of 'images', got 4",
    ),
    "unhashable image": (
        put("annotations", "image_id", [3]),
        r"annotation 1: image_id: expected a whole number or a text, got \[3\]",
    ),
    "duplicate annotation": (
        put("annotations", "id", 2),
        r"annotation 2 \(a\.jpg\): id: expected an id of its own, got 2, also the id of annotations\[0\]",
    ),
    "duplicate name": (
        put("categories", "name", "dog"),
        "categories.name: expected .* got 'dog' for the ids 1, 7",
    ),
    "mask of another size": (
        put("images", "width", 9),
        r"expected the image's size \[6, 9\].* got size \[6, 8\]",
    ),
    "damaged text": (bad_counts("0zz~"), r"annotation 1 \(a\.jpg\): segmentation: .* cannot be decoded"),
    "empty text": (bad_counts(""), "cannot be decoded"),
    "not ascii": (bad_counts("ä"), "cannot be decoded"),
    "short text": (bad_counts("11"), "expected counts of 48 pixels in all, got 2"),
    "short runs": (bad_counts([4, 4]), "expected counts of 48 pixels in all, got 8"),
    "negative runs": (bad_counts([50, -2]), "expected counts of whole numbers from 0"),
    "no counts": (bad_counts(None), "expected counts as a text or a list"),
    "odd polygon": (put("annotations", "segmentation", [[1, 2, 3]], 2), "annotation 5 .* an even number"),
    "no mask at all": (put("annotations", "segmentation", "x"), "expected polygons or run lengths, got 'x'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_file_is_reported(name, tmp_path):
    change, message = BAD[name]
    coco = good()
    change(coco)
    with pytest.raises(ValueError, match=rf"ann\.json: .*{message}"):
        load_coco(write(coco, tmp_path))


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not a JSON file"), ("[]", "got a list"), ("\x00\xff", "not a JSON file")],
)
def test_file_of_another_format_is_reported(text, message, tmp_path):
    with pytest.raises(ValueError, match=rf"ann\.json: .*{message}"):
        load_coco(write(text, tmp_path))


def test_missing_files_are_reported(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such annotation file: .*none\.json"):
        load_coco(tmp_path / "none.json")
    path = write(good(), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"1 of 1 images are not in .*: a\.jpg"):
        load_coco(path, images=tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder of images"):
        load_coco(path, images=tmp_path / "nowhere")
    (tmp_path / "a.jpg").write_bytes(b"x")
    assert load_coco(path, images=tmp_path)["images"][0]["file_name"] == "a.jpg"


@given(
    st.lists(arrays.arrays(bool, st.tuples(st.integers(1, 40), st.integers(1, 40))), min_size=1, max_size=5)
)
def test_run_lengths_cover_their_image(masks):
    totals = rle_pixels([encode(mask)["counts"] for mask in masks])
    assert totals.tolist() == [mask.size for mask in masks]


@given(
    st.lists(st.text(st.characters(min_codepoint=40, max_codepoint=125), max_size=6), min_size=1, max_size=4)
)
def test_run_lengths_that_pycocotools_refuses_are_refused(strings):
    height, width = 4, 3
    for string, total in zip(strings, rle_pixels(strings).tolist(), strict=True):
        try:
            coco_mask.decode({"size": [height, width], "counts": string})
        except ValueError:
            assert total != height * width


def test_saved_file_is_read_back(tmp_path):
    coco = load_coco(write(good(), tmp_path))
    coco["annotations"][0]["segmentation"]["counts"] = coco["annotations"][0]["segmentation"][
        "counts"
    ].encode()
    coco["annotations"][1]["area"] = np.float32(5)
    save_coco(coco, tmp_path / "deep" / "copy.json")
    copy = load_coco(tmp_path / "deep" / "copy.json")
    assert copy["annotations"][0]["segmentation"] == good()["annotations"][0]["segmentation"]
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["copy.json"]


def test_failed_save_leaves_the_old_file(tmp_path):
    save_coco(good(), tmp_path / "a.json")
    with pytest.raises(TypeError, match="cannot write a set"):
        save_coco({"images": {1, 2}}, tmp_path / "a.json")
    assert len(load_coco(tmp_path / "a.json")["images"]) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_real_annotations(data_dir):
    coco = load_coco(data_dir("coco_mini/annotations/instances_val.json"), images=data_dir("coco_mini/val"))
    assert len(coco["images"]) == 161
    assert len(coco["annotations"]) == 1295
    assert len(coco["categories"]) == 80


@pytest.mark.parametrize("name", ["../other.png", "sub/../../other.png", "{}/other.png"])
def test_file_names_that_lead_out_of_the_folder(tmp_path, name):
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "other.png").touch()
    coco = {"images": [{"id": 1, "file_name": name.format(tmp_path), "height": 4, "width": 4}]}
    coco |= {"annotations": [], "categories": [{"id": 1, "name": "cat"}]}
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(coco))
    with pytest.raises(ValueError, match=r"1 of 1 file names lead out of .*other\.png; give a folder"):
        load_coco(path, images=folder)
    coco["images"][0]["file_name"] = str(tmp_path / "other.png")
    path.write_text(json.dumps(coco))
    assert load_coco(path, images=tmp_path)["images"] == coco["images"]
