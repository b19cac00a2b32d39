"""The data of a fit: what is linked, what is held out, and what is told about bad input."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sp_fast.data.coco import load_coco, save_coco
from sp_fast.data.images import list_images
from sp_fast.experiments.fit_data import gather, hold_out


def photo(path: Path, colour: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), colour, np.uint8)).save(path)


def annotations(path: Path, names: list[str], category: str = "cell") -> Path:
    square = [[1, 1, 5, 1, 5, 5, 1, 5]]
    coco = {
        "images": [{"id": i, "file_name": name, "height": 8, "width": 8} for i, name in enumerate(names)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "segmentation": square} for i in range(len(names))
        ],
        "categories": [{"id": 1, "name": category}],
    }
    save_coco(coco, path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Ten images, the first five of which have labels."""
    for number in range(10):
        photo(tmp_path / "photos" / f"{number}.bmp", 20 * number)
    annotations(tmp_path / "labels.json", [f"{number}.bmp" for number in range(5)])
    return tmp_path


def colours(folder) -> list[int]:
    return sorted(np.asarray(Image.open(path))[0, 0, 0] for path in list_images(folder))


def names(path) -> list[str]:
    return [one["file_name"] for one in load_coco(path)["images"]]


def test_held_out_images_are_not_pretrained_on(photos):
    data = gather(photos / "data", [photos / "photos"], photos / "labels.json")
    held = names(data.val)
    assert data.held_out
    assert (data.images_count, data.labels_count, data.val_count) == (9, 4, 1)
    assert sorted(held + names(data.labels)) == [f"{number}.bmp" for number in range(5)]
    kept = [number for number in range(10) if f"{number}.bmp" not in held]
    assert colours(data.images) == [20 * number for number in kept]
    assert all((Path(data.images) / name).is_file() for name in names(data.truth))
    assert [one["image_id"] for one in load_coco(data.truth)["annotations"]] == [
        one["id"] for one in load_coco(data.labels)["images"]
    ]


def test_validation_images_elsewhere_need_their_option(photos):
    photo(photos / "elsewhere" / "other.bmp", 250)
    val = annotations(photos / "val.json", ["9.bmp", "other.bmp"])
    arguments = [photos / "photos"], photos / "labels.json", photos / "photos", val
    with pytest.raises(FileNotFoundError, match=r"--val-images: .* lacks 1 of 2, such as other\.bmp; give"):
        gather(photos / "data", *arguments)
    photo(photos / "photos" / "other.bmp", 250)
    assert names(gather(photos / "data", *arguments).val) == ["9.bmp", "other.bmp"]


def test_each_content_is_linked_once_and_no_validation_image_under_another_name(photos):
    photo(photos / "more" / "copy.bmp", 20 * 7)
    photo(photos / "more" / "new.bmp", 250)
    photo(photos / "val" / "renamed.bmp", 20 * 9)
    val = annotations(photos / "val.json", ["renamed.bmp"])
    folders = [photos / "photos", photos / "more"]
    data = gather(photos / "data", folders, photos / "labels.json", None, val, photos / "val")
    assert not data.held_out
    assert colours(data.images) == [*(20 * number for number in range(9)), 250]
    assert data.labels_count == 5


def test_labelled_images_elsewhere_are_pretrained_on_too(photos):
    photo(photos / "more" / "new.bmp", 250)
    data = gather(photos / "data", [photos / "more"], photos / "labels.json", photos / "photos")
    assert 250 in colours(data.images)
    assert set(names(data.labels)).isdisjoint(names(data.val))
    assert len(names(data.truth)) == 4


def test_the_hold_out_depends_on_the_seed_alone():
    coco = {"images": [{"id": i} for i in range(40)], "annotations": [{"image_id": i} for i in range(40)]}
    turned = {**coco, "images": coco["images"][::-1]}
    first = hold_out(coco, Path("x"), 0)
    ids = [{one["id"] for one in part["images"]} for part in first]
    assert [len(part) for part in ids] == [32, 8]
    assert ids[0].isdisjoint(ids[1])
    assert {one["image_id"] for one in first[1]["annotations"]} == ids[1]
    assert {one["id"] for one in hold_out(turned, Path("x"), 0)[1]["images"]} == ids[1]
    assert {one["id"] for one in hold_out(coco, Path("x"), 1)[1]["images"]} != ids[1]


def test_images_without_objects_count_as_unlabelled(photos):
    coco = json.loads((photos / "labels.json").read_text())
    listed = [{"id": i, "file_name": f"{i}.bmp", "height": 8, "width": 8} for i in range(10)]
    save_coco({**coco, "images": listed}, photos / "all.json")
    data = gather(photos / "data", [photos / "photos"], photos / "all.json")
    assert (data.images_count, data.labels_count, data.val_count) == (9, 4, 1)
    assert load_coco(data.val)["annotations"]


@pytest.mark.parametrize("kind", ["yolo", "labelme"])
def test_labels_in_other_formats(kind, photos):
    folder = photos / kind
    folder.mkdir()
    corners = np.array([[1, 1], [5, 1], [5, 5], [1, 5]])
    for number in range(5):
        if kind == "yolo":
            line = " ".join(map(str, (0, *(corners / 8).ravel())))
            (folder / f"{number}.txt").write_text(line)
        else:
            shape = {"label": "cell", "points": corners.tolist(), "shape_type": "polygon"}
            sides = {"imageHeight": 8, "imageWidth": 8}
            content = {"shapes": [shape], "imagePath": f"{number}.bmp", **sides}
            (folder / f"{number}.json").write_text(json.dumps(content))
    data = gather(photos / "data", [photos / "photos"], folder)
    assert (data.images_count, data.labels_count, data.val_count) == (9, 4, 1)
    assert sorted(names(data.labels) + names(data.val)) == [f"{number}.bmp" for number in range(5)]
    assert [one["bbox"] for one in load_coco(data.labels)["annotations"]] == [[1, 1, 4, 4]] * 4


def test_yolo_labels_to_validate_on_leave_the_other_images_alone(photos):
    (photos / "yolo").mkdir()
    (photos / "yolo" / "classes.txt").write_text("cell")
    (photos / "yolo" / "9.txt").write_text("0 .1 .1 .6 .1 .6 .6")
    data = gather(photos / "data", [photos / "photos"], photos / "labels.json", val=photos / "yolo")
    assert names(data.val) == ["9.bmp"]
    assert (data.images_count, data.labels_count) == (9, 5)


def test_copies_are_not_in_both_parts(photos):
    for number in range(5):
        photo(photos / "photos" / f"copy{number}.bmp", 20 * number)
    both = [f"{name}{number}.bmp" for number in range(5) for name in ("", "copy")]
    data = gather(photos / "data", [photos / "photos"], annotations(photos / "both.json", both))
    assert (data.labels_count, data.val_count) == (4, 1)
    assert len(set(names(data.truth))) == 4
    photo(photos / "val" / "renamed.bmp", 20 * 3)
    val = annotations(photos / "val.json", ["renamed.bmp"])
    folders = photos / "photos", photos / "val"
    data = gather(photos / "other", folders[:1], photos / "labels.json", None, val, folders[1])
    assert names(data.labels) == ["0.bmp", "1.bmp", "2.bmp", "4.bmp"]


def test_bad_data_are_told_by_their_option(photos):
    one = annotations(photos / "one.json", ["0.bmp"])
    with pytest.raises(ValueError, match="--labels: expected at least 2 images with objects"):
        gather(photos / "data", [photos / "photos"], one)
    lost = annotations(photos / "lost.json", ["0.bmp", "nowhere.bmp"])
    with pytest.raises(FileNotFoundError, match=r"--label-images: .* lacks 1 of 2, such as nowhere.bmp"):
        gather(photos / "data", [photos / "photos"], lost)
    for number in range(5):  # other images of the same names
        photo(photos / "more" / f"{number}.bmp", 200 + number)
    with pytest.raises(
        ValueError, match=r"--label-images: .*photos and .*more have images of all these names"
    ):
        gather(photos / "data", [photos / "photos", photos / "more"], photos / "labels.json")
    for name in ("label_images", "val_images"):
        with pytest.raises(NotADirectoryError, match=f"--{name.replace('_', '-')}: expected a folder"):
            gather(photos / "data", [photos / "photos"], one, **{name: photos / "nowhere"})
    (photos / "yolo").mkdir()
    (photos / "yolo" / "elsewhere.txt").write_text("0 .1 .1 .5 .1 .5 .5")
    with pytest.raises(ValueError, match=r"expected a \.txt file .* give --label-images"):
        gather(photos / "data", [photos / "photos"], photos / "yolo")
    with pytest.raises(ValueError, match=r"--label-images: expected the folder of .* IMAGES are 2 folders"):
        gather(photos / "data", [photos / "photos", photos / "more"], photos / "yolo")
    val = annotations(photos / "val.json", ["9.bmp"], category="dog")
    with pytest.raises(ValueError, match="--val: expected the categories of --labels, got also dog"):
        gather(photos / "data", [photos / "photos"], photos / "labels.json", None, val)
    empty = json.loads((photos / "labels.json").read_text())
    save_coco({**empty, "annotations": []}, photos / "empty.json")
    with pytest.raises(ValueError, match="--labels: expected objects to learn from"):
        gather(photos / "data", [photos / "photos"], photos / "empty.json")
    with pytest.raises(ValueError, match="--labels: expected objects in images that are not validated on"):
        gather(photos / "data", [photos / "photos"], photos / "labels.json", None, photos / "labels.json")
