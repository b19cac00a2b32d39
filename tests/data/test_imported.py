"""Masks and boxes of other methods, in the forms in which these write them."""

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from sp_fast.data.coco import load_coco
from sp_fast.data.imported import import_masks
from sp_fast.data.prepared import write_checked
from tests.data.fixtures import encode

HEIGHT, WIDTH = 32, 48
BOXES = [(2, 3, 12, 9), (20, 4, 8, 20), (34, 14, 12, 14)]  # xywh


def mask_of(box, height=HEIGHT, width=WIDTH):
    """A mask with this tight box, but not box-shaped where the box has more than one row."""
    x, y, w, h = box
    mask = np.zeros((height, width), bool)
    mask[y, x : x + w] = mask[y : y + h, x] = True
    return mask


def freesolo_mask(box, score, image_id, number):
    """As demo/inference_freemask.py of NVlabs/FreeSOLO writes it: the box is x0 y0 x1 y1 around a centre."""
    x, y, w, h = box
    return {
        "segmentation": encode(mask_of(box)),
        "bbox": [x - 0.5, y - 0.5, x + w - 0.5, y + h - 0.5],
        "score": score,
        "emb": [0.25] * 128,
        "iscrowd": 0,
        "image_id": image_id,
        "category_id": 1,
        "id": number,
    }


@pytest.fixture
def folders(tmp_path):
    """One image in each of two folders, named by id as in COCO."""
    for name, number in (("train2017", 9), ("unlabeled2017", 25)):
        (tmp_path / name).mkdir()
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / name / f"{number:012d}.jpg")
    return [tmp_path / "train2017", tmp_path / "unlabeled2017"]


@pytest.fixture
def records():
    return [{"file_name": f"{one:012d}.jpg", "height": HEIGHT, "width": WIDTH, "id": one} for one in (9, 25)]


@pytest.fixture
def freesolo(tmp_path, records):
    """FreeSOLO's file of both folders: bare names, COCO's categories, and ids that start again."""
    masks = [freesolo_mask(box, 0.7 + 0.1 * k, 9, k) for k, box in enumerate(BOXES)]
    masks.append(freesolo_mask(BOXES[0], 0.95, 25, 0))
    categories = [{"supercategory": "person", "id": 1, "name": "person"}, {"id": 18, "name": "dog"}]
    return write(
        tmp_path / "freesolo.json", {"categories": categories, "images": records, "annotations": masks}
    )


def write(path, value):
    path.write_text(json.dumps(value))
    return path


def check(found, boxes, path, images=None):
    """The masks have these tight boxes, and the written file is read like any other."""
    assert [one["bbox"] for one in found.coco["annotations"]] == [list(box) for box in boxes]
    for one in found.coco["annotations"]:
        assert one["area"] == coco_mask.decode(one["segmentation"]).sum()
    write_checked(found.coco, path)
    again = load_coco(path, images)
    assert again["annotations"] == found.coco["annotations"]


def test_freesolo(freesolo, folders, tmp_path):
    calls = []
    found = import_masks(freesolo, images=folders, progress=lambda *now: calls.append(now))
    assert (found.root, found.notes, calls) == (tmp_path, (), [(1, 2), (2, 2)])
    names = [image["file_name"] for image in found.coco["images"]]
    assert names == ["train2017/000000000009.jpg", "unlabeled2017/000000000025.jpg"]
    assert [one["image_id"] for one in found.coco["annotations"]] == [9, 9, 9, 25]
    assert [one["id"] for one in found.coco["annotations"]] == [1, 2, 3, 4]
    assert [one["score"] for one in found.coco["annotations"]] == pytest.approx([0.7, 0.8, 0.9, 0.95])
    assert found.coco["categories"] == [{"id": 1, "name": "object"}]
    assert "emb" not in found.coco["annotations"][0]
    check(found, [*BOXES, BOXES[0]], tmp_path / "out.json", found.root)
    first = coco_mask.decode(found.coco["annotations"][0]["segmentation"])
    assert (first == mask_of(BOXES[0])).all()


def test_scores_and_the_best_of_each_image(freesolo, tmp_path):
    found = import_masks(freesolo, min_score=0.75, top=1)
    check(found, [BOXES[2], BOXES[0]], tmp_path / "out.json")
    assert found.notes == (
        "Left out: 1 scored below 0.75",
        "Left out: 1 beyond the best 1 of their image",
    )
    with pytest.raises(ValueError, match="expected at least one mask, got none of 4 entries"):
        import_masks(freesolo, min_score=0.99)


def test_maskcut_exchanges_height_and_width(tmp_path):
    """CutLER's maskcut/maskcut.py passes (height, width) as (width, height) of an image; no scores."""
    (tmp_path / "n01440764").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "n01440764" / "n01440764_36.JPEG")
    image = {"id": 1, "file_name": "n01440764/n01440764_36.JPEG", "width": HEIGHT, "height": WIDTH}
    image |= {"date_captured": "2023-01-01", "license": 1, "coco_url": "", "flickr_url": ""}
    masks = [
        {"id": k, "image_id": 1, "category_id": 1, "iscrowd": 0, "area": 3, "bbox": [0.0, 0.0, 3.0, 1.0]}
        | {"segmentation": encode(mask_of(box)), "width": WIDTH, "height": HEIGHT}
        for k, box in enumerate(BOXES, start=1)
    ]
    coco = {"info": {"description": "ImageNet-1K: pseudo-masks with MaskCut"}, "licenses": [{"id": 1}]}
    coco |= {"categories": [{"id": 1, "name": "fg", "supercategory": "fg"}]}
    path = write(tmp_path / "maskcut.json", {**coco, "images": [image], "annotations": masks})
    found = import_masks(path, images=[tmp_path], top=2)
    assert (found.coco["images"][0]["height"], found.coco["images"][0]["width"]) == (HEIGHT, WIDTH)
    assert "Height and width of 1 images were exchanged" in found.notes[0]
    assert "score" not in found.coco["annotations"][0]
    check(found, BOXES[:2], tmp_path / "out.json", tmp_path)
    with pytest.raises(ValueError, match="entry 0: score: expected a number, got no such key"):
        import_masks(path, min_score=0.3)


def test_polygons_run_lengths_and_empty_masks(tmp_path, records):
    polygon = [[2, 3, 14, 3, 14, 12, 2, 12]]
    counts = {"size": [HEIGHT, WIDTH], "counts": [32 * 20, 64, 32 * 26]}
    empty = encode(np.zeros((HEIGHT, WIDTH), bool))
    masks = [
        {"id": k, "image_id": 9, "category_id": 1, "segmentation": one, "score": 0.5}
        for k, one in enumerate((polygon, empty, counts, []))
    ]
    path = write(tmp_path / "mixed.json", {"images": records, "annotations": masks, "categories": []})
    found = import_masks(path)
    assert found.notes == ("Left out: 2 empty",)
    check(found, [(2, 3, 12, 9), (20, 0, 2, 32)], tmp_path / "out.json")


@pytest.mark.parametrize("name", ["id", "file_name", "image_id"])
def test_results_by_id_and_by_file_name(tmp_path, records, folders, name):
    """As detectron2's COCOEvaluator writes them, for FreeSOLO and CutLER; or with file names."""
    results = [
        {"image_id": one["id"], "category_id": 1, "bbox": [0.0, 0.0, 9.0, 9.0], "score": 0.5}
        | {"segmentation": encode(mask_of(BOXES[0]))}
        for one in records
    ]
    if name != "id":
        for one, record in zip(results, records, strict=True):
            del one["image_id"]
            one[name] = record["file_name"]
    path = write(tmp_path / "coco_instances_results.json", results)
    of = write(tmp_path / "image_info.json", {"images": [*records, {**records[0], "id": 7}]})
    given = {"of": of} if name == "id" else {"images": folders}
    found = import_masks(path, **given)
    assert [one["id"] for one in found.coco["images"]] == ([9, 25, 7] if name == "id" else [1, 2])
    check(found, [BOXES[0], BOXES[0]], tmp_path / "out.json", found.root)
    with pytest.raises(ValueError, match=r"by id, such as 9: .* \(--of\)" if name == "id" else "of others"):
        import_masks(path, of=None if name == "id" else write(of, {"images": records[:1]}))


def test_boxes_become_masks(tmp_path, records, freesolo, folders):
    """UP-DETR's and DETReg's results have boxes only: xywh, fractions, and may reach over the border."""
    results = [
        {"image_id": 9, "category_id": 1, "bbox": [2.2, 3.1, 12.1, 8.8], "score": 0.5},
        {"image_id": 9, "category_id": 1, "bbox": [40.0, 20.0, 30.0, 30.0], "score": 0.4},
        {"image_id": 25, "category_id": 1, "bbox": [60.0, 20.0, 30.0, 30.0], "score": 0.4},
    ]
    path = write(tmp_path / "boxes.json", results)
    of = write(tmp_path / "image_info.json", {"images": records})
    found = import_masks(path, of=of, boxes=True)
    assert found.notes == ("Left out: 1 empty",)
    check(found, [(2, 3, 12, 9), (40, 20, 8, 12)], tmp_path / "out.json")
    assert all(one["area"] == one["bbox"][2] * one["bbox"][3] for one in found.coco["annotations"])
    with pytest.raises(ValueError, match=r"entry 0 has no 'segmentation'.*--boxes"):
        import_masks(path, of=of)
    coco = {"images": records, "annotations": [{**results[0], "id": 1, "segmentation": []}]}
    check(import_masks(write(path, coco), boxes=True), [(2, 3, 12, 9)], tmp_path / "out.json")
    named = [{"file_name": records[0]["file_name"], **results[0]}]
    found = import_masks(write(path, named), images=folders, boxes=True)  # the size is the file's
    check(found, [(2, 3, 12, 9)], tmp_path / "out.json")

    wild = [{**results[0], "bbox": box} for box in ([1, 2, 1e14, 9], [-1e14, 2, 2e14, 1e9], [9, 9, -5, -5])]
    found = import_masks(write(path, wild), of=of, boxes=True)
    assert found.notes == ("Left out: 1 empty",)
    check(found, [(1, 2, 47, 9), (0, 2, 48, 30)], tmp_path / "out.json")

    found = import_masks(freesolo, boxes=True)  # tight boxes of the masks, since the file's are not xywh
    check(found, [*BOXES, BOXES[0]], tmp_path / "out.json")
    assert [one["area"] for one in found.coco["annotations"]] == [108, 160, 168, 108]


@pytest.mark.parametrize("way", ["apply", "ignore"])
def test_exif_orientation_that_the_sizes_prove(tmp_path, way):
    """Photos that are stored turned (6) or upside down (3): the first one proves how the masks were made."""
    tags = Image.Exif()
    for name, orientation in (("a.jpg", 6), ("b.jpg", 3)):
        tags[0x0112] = orientation
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / name, exif=tags)
    size = (HEIGHT, WIDTH) if way == "ignore" else (WIDTH, HEIGHT)
    results = [
        {"image_id": "a.jpg", "segmentation": encode(mask_of(BOXES[0], *size))},
        {"image_id": "b.jpg", "segmentation": encode(mask_of(BOXES[0]))},
    ]
    found = import_masks(write(tmp_path / "masks.json", results), images=[tmp_path])
    assert found.coco["info"]["exif"] == way
    assert (found.coco["images"][0]["height"], found.coco["images"][0]["width"]) == size
    only = import_masks(write(tmp_path / "masks.json", results[1:]), images=[tmp_path])
    assert "exif" not in only.coco["info"]  # both readings fit: the data set's option decides


def test_bad_files_name_the_entry(tmp_path, records, folders, freesolo):
    good = json.loads(freesolo.read_text())

    def changed(**entry):
        return {**good, "annotations": [{**good["annotations"][0], **entry}]}

    damaged = {"size": [HEIGHT, WIDTH], "counts": "02"}
    for value, words in (
        ({"images": []}, "expected a list of results, or a COCO-format dict"),
        (3, "expected a list of results, or a COCO-format dict"),
        ({"images": [3], "annotations": []}, "expected a dict with an 'id' for each of 'images'"),
        ({"images": [{"id": [1]}], "annotations": []}, "expected a dict with an 'id'"),
        (changed(image_id=[9]), "entry 0: expected a dict with 'image_id'"),
        ([3], "entry 0: expected a dict with 'image_id'"),
        ([{"image_id": [9]}], "entry 0: expected a dict with 'image_id'"),
        (changed(segmentation=damaged), "entry 0: segmentation"),
        (changed(segmentation=encode(np.ones((9, 9), bool))), "entry 0: segmentation"),
        (changed(image_id=99), "entry 0: image_id: expected an id of 'images', got 99"),
        (changed(score="high"), "entry 0: score: expected a number, got 'high'"),
        ({**good, "images": good["images"][:1] * 2}, "id: expected an id of its own"),
    ):
        with pytest.raises(ValueError, match=words):
            import_masks(write(tmp_path / "bad.json", value))
    with pytest.raises(ValueError, match="top: expected at least 1, got 0"):
        import_masks(freesolo, top=0)
    with pytest.raises(ValueError, match="lists its own images"):
        import_masks(freesolo, of=freesolo)
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images are not in .*000000000025.jpg"):
        import_masks(freesolo, images=folders[:1])
    part = import_masks(freesolo, images=folders[1:], leave_out_missing=True)
    assert [one["file_name"] for one in part.coco["images"]] == ["000000000025.jpg"]
    assert {one["image_id"] for one in part.coco["annotations"]} == {25}
    assert "Left out: 1 images that are in none of the folders" in part.notes
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(folders[0] / "000000000009.jpg")
    with pytest.raises(
        ValueError, match=r"1 of 2 images .*000000000009.jpg \(\(33, 48\), expected \(32, 48\)\)"
    ):
        import_masks(freesolo, images=folders)
    of = write(tmp_path / "of.json", {"images": [{"id": 9, "file_name": ["x"], "height": 9, "width": 9}]})
    with pytest.raises(ValueError, match="image 9: file_name: expected a file's name"):
        import_masks(write(tmp_path / "bad.json", [{"image_id": 9, "segmentation": []}]), of=of)
    named = write(tmp_path / "named.json", [{"file_name": "x.jpg", "bbox": [0, 0, 9, 9]}])
    with pytest.raises(FileNotFoundError, match=r"x.jpg: its size is not known.*--images"):
        import_masks(named, boxes=True)
