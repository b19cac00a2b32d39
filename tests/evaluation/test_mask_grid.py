"""Masks of files drawn over their images."""

import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from sp_fast.evaluation.mask_grid import choose_images, mask_grid, read_masks
from tests.evaluation.test_sources import as_coco, as_objects, saved


def boxes(size, *places):
    """Annotations of an image, 1, whose masks are these boxes: x, y, width, height."""
    height, width = size
    annotations = [
        {
            "id": k,
            "image_id": 1,
            "category_id": 1,
            "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
            "iscrowd": 0,
        }
        for k, (x, y, w, h) in enumerate(places, start=1)
    ]
    image = {"id": 1, "file_name": "a.png", "height": height, "width": width}
    return {
        "images": [image],
        "annotations": annotations,
        "categories": [{"id": 1, "name": "object"}],
    }


def drawn(coco, folder, tmp_path):
    """The first row of pictures that is drawn."""
    return mask_grid([read_masks(saved(coco, tmp_path))], folder, ["a.png"]).axes[0].images[0].get_array()


def test_all_forms_give_the_same_masks(scenes, truth, results, tmp_path):
    listed = read_masks(saved(results, tmp_path), scenes / "validation.json", label="results")
    assert listed.label == "results"
    count = sum(map(len, listed.masks.values()))
    assert count == len(results)
    for coco in (as_coco(truth, results), as_objects(as_coco(truth, results))):
        found = read_masks(saved(coco, tmp_path))
        assert found.label == "found.json"
        assert found.images.keys() == listed.images.keys()
        assert {name: len(masks) for name, masks in found.masks.items()} == {
            name: len(masks) for name, masks in listed.masks.items()
        }
    least = sorted(one["score"] for one in results)[count // 2]
    part = read_masks(saved(results, tmp_path), scenes / "validation.json", min_score=least)
    assert part.left_out == sum(one["score"] < least for one in results) > 0
    assert sum(map(len, part.masks.values())) == count - part.left_out


def test_annotations_have_no_scores_and_crowds_are_left_out(scenes, truth, tmp_path):
    coco = json.loads((scenes / "validation.json").read_text())
    count = len(coco["annotations"])
    coco["annotations"][0]["iscrowd"] = 1
    found = read_masks(saved(coco, tmp_path), min_score=0.9)
    assert (sum(map(len, found.masks.values())), found.left_out) == (count - 1, 0)


def test_files_that_cannot_be_drawn_are_refused(truth, results, scenes, tmp_path):
    with pytest.raises(ValueError, match="--annotations: expected the COCO-format file of the images"):
        read_masks(saved(results, tmp_path))
    only_boxes = [{key: one[key] for key in one if key != "segmentation"} for one in results]
    for one in only_boxes:
        one.setdefault("bbox", [0, 0, 5, 5])
    with pytest.raises(ValueError, match="expected results with masks"):
        read_masks(saved(only_boxes, tmp_path), scenes / "validation.json")
    coco = boxes((10, 10), (2, 2, 5, 5))
    coco["annotations"][0]["score"] = "high"
    with pytest.raises(ValueError, match="annotation 1 has the score 'high': expected a number"):
        read_masks(saved(coco, tmp_path))
    with pytest.raises(FileNotFoundError, match="no such annotation file"):
        read_masks(tmp_path / "none.json")


def test_images_that_all_files_have_are_chosen(scenes, truth, tmp_path):
    everything = read_masks(scenes / "validation.json")
    names = list(everything.images)
    coco = json.loads((scenes / "validation.json").read_text())
    kept = {one["id"] for one in coco["images"][1:]}
    coco["images"] = coco["images"][1:]
    coco["annotations"] = [one for one in coco["annotations"] if one["image_id"] in kept]
    fewer = read_masks(saved(coco, tmp_path))
    assert choose_images([everything, fewer], 12) == names[1:]
    assert choose_images([everything], 3) == names[::2]
    assert choose_images([everything, fewer], 1, names[2:4]) == names[2:4]
    with pytest.raises(ValueError, match=f"--names: expected images that all files have.*{names[0]}"):
        choose_images([everything, fewer], 1, names[:1])
    other = read_masks(saved(boxes((10, 10), (2, 2, 5, 5)), tmp_path))
    with pytest.raises(ValueError, match="expected files with images in common"):
        choose_images([everything, other], 1)


def test_masks_are_drawn_at_their_position(tmp_path):
    Image.new("RGB", (60, 30), (100, 100, 100)).save(tmp_path / "a.png")
    picture = drawn(boxes((30, 60), (10, 5, 20, 15)), tmp_path, tmp_path)
    # The image is 300 pixels high, ten times as large, at the left of a row of 1500.
    assert picture.shape == (300, 1500, 3)
    assert picture[20, 50].tolist() == [100, 100, 100]
    assert picture[100, 200, 0] > picture[100, 200, 2] + 30  # tinted orange
    assert picture[:, 700:].min() == 255


@pytest.mark.parametrize("exif", ["apply", "ignore"])
def test_exif_orientation_follows_the_masks(exif, tmp_path):
    pixels = np.zeros((30, 60, 3), np.uint8)
    pixels[:15] = 200  # the upper half of the stored pixels
    orientation = Image.Exif()
    orientation[0x0112] = 3
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=orientation)
    coco = {**boxes((30, 60), (50, 10, 5, 5)), "info": {"exif": exif}}
    picture = drawn(coco, tmp_path, tmp_path)
    assert (picture[20, 20, 0] > picture[280, 20, 0]) == (exif == "ignore")


def test_each_row_is_repeated_for_each_file(scenes, tmp_path):
    path = scenes / "validation.json"
    files = [
        read_masks(path, label="first"),
        read_masks(path, label="a-name-of-more-than-thirty-letters.json"),
    ]
    # Images of 96 x 96: five fill a row, the sixth is in the next.
    figure = mask_grid(files, scenes / "validation", choose_images(files, 6))
    assert [len(axes.texts) for axes in figure.axes] == [5, 0, 1, 0]
    assert [axes.get_ylabel() for axes in figure.axes] == ["first", "…more-than-thirty-letters.json"] * 2
