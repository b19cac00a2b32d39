"""Each planted fault of a data set is found, and nothing else; real data sets have none."""

import json
import time
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from sp_fast.data import check, image_faults
from sp_fast.data.check import check_coco, errors_before_training
from sp_fast.data.coco import load_coco
from sp_fast.data.faults import KINDS, NOTE
from sp_fast.data.structure import structural_faults

HEIGHT, WIDTH = 64, 96
SECOND = 1  # index of an annotation of image 1 whose box is 30, 20, 40, 30
NAN, INFINITE = float("nan"), float("inf")


def square(x, y, width, height):
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def good_set(folder):
    """Four noisy images with two objects each, as polygons and as run lengths; returns the COCO dict."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    coco = {"images": [], "annotations": [], "categories": []}
    coco["categories"] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    for k in range(4):
        name = f"{k}.png"
        pixels = random.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / name)
        coco["images"].append({"id": k + 1, "file_name": name, "height": HEIGHT, "width": WIDTH})
        for j, box in enumerate(([2, 3, 20, 10], [30, 20, 40, 30])):
            one = {"id": len(coco["annotations"]) + 1, "image_id": k + 1, "category_id": j + 1, "iscrowd": 0}
            one |= {"bbox": box, "area": box[2] * box[3], "segmentation": [square(*box)]}
            coco["annotations"].append(one)
    last = coco["annotations"][-1]
    last["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [64 * 30 + 20, 30, 64 * 96 - 64 * 30 - 50]}
    last |= {"bbox": [30, 20, 1, 30], "area": 30}
    return coco


def write(coco, folder):
    path = folder / "ann.json"
    path.write_text(coco if isinstance(coco, str) else json.dumps(coco))
    return path


def in_annotation(**values):
    return lambda coco, images: coco["annotations"][SECOND].update(values)


def in_image(**values):
    return lambda coco, images: coco["images"][0].update(values)


def polygon(*values):
    return in_annotation(segmentation=[list(values)])


def drop(part, key):
    return lambda coco, images: coco[part][0].pop(key)


def crowded(coco, images):
    coco["annotations"].append(dict(coco["annotations"][0], id=99))


def copied(coco, images):
    with Image.open(images / "0.png") as image:
        image.save(images / "1.bmp")
    coco["images"][1]["file_name"] = "1.bmp"


def turned(coco, images):
    exif = Image.Exif()
    exif[0x112] = 6
    with Image.open(images / "0.png") as image:
        image.save(images / "0.png", exif=exif)


def truncated(coco, images):
    content = (images / "0.png").read_bytes()
    (images / "0.png").write_bytes(content[: len(content) // 2])


def same_id(coco, images):
    coco["images"].append(dict(coco["images"][0], file_name="4.png"))


def outside_folder(coco, images):
    (images / "0.png").rename(images.parent / "0.png")
    coco["images"][0]["file_name"] = "../0.png"


def twice(coco, images):
    coco["images"].append(dict(coco["images"][0], id=9, file_name="./0.png"))


FAULTS = {
    "no such key": (drop("annotations", "segmentation"), "key"),
    "annotation id twice": (in_annotation(id=1), "id"),
    "image id twice": (same_id, "id"),
    "ids of two types": (in_annotation(id="two"), "mixed ids"),
    "unknown image": (in_annotation(image_id=77), "reference"),
    "unknown category": (in_annotation(category_id=77), "reference"),
    "crowd as text": (in_annotation(iscrowd="0"), "type"),
    "image id as float": (in_annotation(image_id=1.0), "type"),
    "box of three numbers": (in_annotation(bbox=[1, 2, 3]), "type"),
    "height as text": (in_image(height="64"), "type"),
    "height 0": (in_image(height=0), "type"),
    "name as list": (in_image(file_name=["0.png"]), "type"),
    "huge image": (in_image(height=10**9, width=10**9), "number"),
    "NaN in a polygon": (polygon(30, 20, 70, NAN, 70, 50), "number"),
    "infinite polygon": (polygon(30, 20, 70, INFINITE, 70, 50), "number"),
    "huge polygon": (polygon(30, 20, 2e8, 20, 70, 50), "number"),
    "integer of 400 digits": (polygon(30, 20, 10**400, 20, 70, 50), "number"),
    "NaN in a box": (in_annotation(bbox=[30, NAN, 40, 30]), "number"),
    "odd polygon": (polygon(30, 20, 70, 20, 70), "polygon"),
    "text in a polygon": (polygon(30, 20, 70, "20", 70, 50), "polygon"),
    "flat polygon": (in_annotation(segmentation=square(30, 20, 40, 30)), "polygon"),
    "polygon of two points": (polygon(30, 20, 70, 50), "points"),
    "pairs of points": (in_annotation(segmentation=[[30, 20], [70, 20], [70, 50], [30, 50]]), "point pairs"),
    "nested pairs": (in_annotation(segmentation=[[[30, 20], [70, 20], [70, 50]]]), "point pairs"),
    "coordinates in 0..1": (polygon(0.3, 0.3, 0.7, 0.3, 0.7, 0.8), "normalised"),
    "no polygons": (in_annotation(segmentation=[]), "empty"),
    "polygon without area": (polygon(30, 20, 30, 20, 30, 20), "empty"),
    "run lengths of another size": (
        in_annotation(segmentation={"size": [9, 9], "counts": [81]}),
        "run lengths",
    ),
    "damaged run lengths": (in_annotation(segmentation={"size": [64, 96], "counts": "0zz~"}), "run lengths"),
    "empty run lengths": (in_annotation(segmentation={"size": [64, 96], "counts": [6144]}), "empty"),
    "box as corners": (in_annotation(bbox=[30, 20, 70, 50]), "xyxy"),
    "box elsewhere": (in_annotation(bbox=[2, 2, 10, 10]), "box"),
    "box of 0": (in_annotation(bbox=[0, 0, 0, 0]), "box"),
    "area 0": (in_annotation(area=0), "area"),
    "outside": (in_annotation(segmentation=[square(100, 20, 40, 30)], bbox=[100, 20, 40, 30]), "outside"),
    "partly outside": (
        in_annotation(segmentation=[square(80, 20, 40, 30)], bbox=[80, 20, 16, 30], area=480),
        "partly outside",
    ),
    "other size": (in_image(height=70), "image size"),
    "sides swapped": (in_image(height=WIDTH, width=HEIGHT), "swapped size"),
    "EXIF turns the image": (turned, "EXIF"),
    "no file": (lambda coco, images: (images / "0.png").unlink(), "missing image"),
    "empty file": (lambda coco, images: (images / "0.png").write_bytes(b""), "broken image"),
    "half a file": (truncated, "broken image"),
    "outside the folder": (outside_folder, "outside folder"),
    "listed twice": (twice, "listed twice"),
    "copy in another format": (copied, "same image"),
    "object twice": (crowded, "object twice"),
    "two categories of one name": (
        lambda coco, images: coco["categories"][0].update(name="dog"),
        "class name",
    ),
    "no categories": (lambda coco, images: coco.update(categories={}), "format"),
}


def kinds_in(found):
    return {fault.kind for fault in found.faults if fault.severity != NOTE}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """COCO dict and folder of a set without faults; tests must not change them."""
    folder = tmp_path_factory.mktemp("good")
    coco = good_set(folder)
    return write(coco, folder), folder / "images"


def test_good_set_has_no_faults(good):
    found = check_coco(*good)
    assert kinds_in(found) == set()
    counts = found.files[0].counts
    assert (counts.images, counts.objects, counts.classes) == (4, 8, {"cat": 4, "dog": 4})
    assert counts.sizes == {"small": 5, "medium": 3, "large": 0}
    errors_before_training(*good)


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_found_and_no_other(name, tmp_path):
    plant, kind = FAULTS[name]
    coco = good_set(tmp_path)
    plant(coco, tmp_path / "images")
    found = check_coco(write(coco, tmp_path), tmp_path / "images")
    assert kinds_in(found) == {kind}
    fault = next(fault for fault in found.faults if fault.kind == kind)
    assert fault.expected
    assert fault.got
    assert fault.mend


def test_all_faults_are_collected(tmp_path):
    coco = good_set(tmp_path)
    coco["images"][1]["height"] = 70
    for plant in (crowded, polygon(1, 2, 3), drop("categories", "name")):
        plant(coco, tmp_path / "images")
    coco["annotations"][4]["image_id"] = coco["annotations"][5]["image_id"] = 50
    found = check_coco(write(coco, tmp_path), tmp_path / "images")
    assert sorted(fault.kind for fault in found.faults if fault.severity != NOTE) == [
        "image size", "key", "object twice", "polygon", "reference", "reference"
    ]  # fmt: skip


def test_text_that_is_not_json_is_a_fault(tmp_path):
    (tmp_path / "images").mkdir()
    for text in ("{", "[" * 100_000, "\ud800"):
        (tmp_path / "ann.json").write_text(text, errors="surrogatepass")
        assert kinds_in(check_coco(tmp_path / "ann.json", tmp_path / "images")) == {"format"}


def test_same_pixels_in_both_sets(good, tmp_path):
    coco = good_set(tmp_path)
    for k, image in enumerate(coco["images"]):
        path = tmp_path / "images" / image["file_name"]
        with Image.open(path) as picture:
            pixels = np.asarray(picture)
        Image.fromarray(pixels if k == 2 else 255 - pixels).save(path)
    coco["categories"][1]["name"] = "horse"
    found = check_coco(*good, val=(write(coco, tmp_path), tmp_path / "images"))
    assert kinds_in(found) == {"leak", "other classes"}
    (leak,) = found.errors
    assert "2.png" in leak.where
    assert kinds_in(check_coco(*good, val=(tmp_path / "ann.json", tmp_path / "images"), pixels=False)) == {
        "other classes"
    }


def test_errors_before_training_are_one_message(tmp_path):
    coco = good_set(tmp_path)
    for one in coco["annotations"][:7]:
        one["iscrowd"] = "0"
    path = write(coco, tmp_path)
    with pytest.raises(
        ValueError, match=r"7 errors in the data:(?s:.*)annotation 1(?s:.*)sp-fast check"
    ) as error:
        errors_before_training(path, tmp_path / "images")
    assert len(str(error.value).splitlines()) == 7
    with pytest.raises(NotADirectoryError, match="expected a folder"):
        errors_before_training(path, tmp_path / "none")


def test_checks_before_training_show_their_progress_once_they_take_long(good, monkeypatch, capsys):
    monkeypatch.setattr(check, "_SILENT", 3600.0)
    errors_before_training(*good)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(check, "_SILENT", 0.0)
    errors_before_training(*good)
    assert "images checked" in capsys.readouterr().err


def test_ctrl_c_does_not_wait_for_the_other_images(good, monkeypatch):
    looked = []

    def look(path):
        time.sleep(0.01)
        looked.append(path)
        return HEIGHT, WIDTH

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(image_faults, "image_size", look)
    images = [(k, {"id": k, "file_name": f"{k}.png", "height": HEIGHT, "width": WIDTH}) for k in range(2000)]
    with pytest.raises(KeyboardInterrupt):
        image_faults.image_faults(images, good[1], pixels=False, progress=stop)
    assert len(looked) < 2000


def test_an_id_with_a_decimal_point_is_shown_with_it(good):
    coco = json.loads(good[0].read_text())
    coco["annotations"][0]["image_id"] = 1.0
    (fault,) = structural_faults(coco)
    assert str(fault).endswith("image_id: expected a whole number or a text, got 1.0")


def test_classes_of_the_same_name_do_for_class_agnostic_training(tmp_path):
    coco = good_set(tmp_path)
    coco["categories"] = [dict(one, name="same") for one in coco["categories"]]
    path = write(coco, tmp_path)
    with pytest.raises(ValueError, match=r"'same' for the ids .* or train with --class-agnostic"):
        errors_before_training(path, tmp_path / "images")
    with pytest.raises(ValueError, match="'same' for the ids"):
        load_coco(path)
    errors_before_training(path, tmp_path / "images", class_agnostic=True)
    assert len(load_coco(path, class_agnostic=True)["annotations"]) == len(coco["annotations"])


@pytest.mark.parametrize("name", ["outside", "polygon of two points", "no polygons", "empty run lengths"])
def test_objects_without_a_mask_are_left_out_with_a_warning(name, tmp_path):
    coco = good_set(tmp_path)
    FAULTS[name][0](coco, tmp_path / "images")
    with pytest.warns(UserWarning, match="1 of 8 objects have an empty mask: annotations 2"):
        loaded = load_coco(write(coco, tmp_path))
    assert [one["id"] for one in loaded["annotations"]] == [1, 3, 4, 5, 6, 7, 8]


def test_a_file_of_empty_masks_only_is_refused(tmp_path):
    coco = good_set(tmp_path)
    for one in coco["annotations"]:
        one["segmentation"] = []
    with pytest.raises(ValueError, match="8 of 8 objects have an empty mask"):
        load_coco(write(coco, tmp_path))


def test_box_and_area_of_0_come_from_the_mask(tmp_path):
    coco = good_set(tmp_path)
    in_annotation(area=0, bbox=[0, 0, 0, 0], iscrowd=False)(coco, None)
    one = load_coco(write(coco, tmp_path))["annotations"][SECOND]
    assert (one["bbox"], one["area"], one["iscrowd"]) == ([30, 20, 40, 30], 1200, 0)


WRONG = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)
PLACES = [
    *((part, key) for part in ("images", "annotations", "categories") for key in ("id", None)),
    *(("images", key) for key in ("file_name", "height", "width")),
    *(("annotations", key) for key in ("image_id", "category_id", "segmentation", "bbox", "area", "iscrowd")),
    ("categories", "name"),
]


@settings(max_examples=300, deadline=None)
@given(place=st.sampled_from(PLACES), value=WRONG, nested=st.booleans())
def test_any_value_at_any_place_is_read_or_named(good, tmp_path_factory, place, value, nested):
    coco = json.loads(good[0].read_text())
    part, key = place
    if key is None:
        coco[part][0] = value
    else:
        coco[part][0][key] = [value] if nested else value
    path = write(coco, tmp_path_factory.getbasetemp())
    faults = list(structural_faults(json.loads(path.read_text())))
    check_coco(path, good[1], pixels=False)
    if faults:
        with pytest.raises(ValueError, match=r"expected .*, got "):
            load_coco(path)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of an empty mask
            load_coco(path)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("train", "val"),
    [
        (
            ("coco_mini/annotations/instances_train.json", "coco_mini/train"),
            ("coco_mini/annotations/instances_val.json", "coco_mini/val"),
        ),
        (("nuclei/instances_train.json", "nuclei/train"), ("nuclei/instances_val.json", "nuclei/val")),
    ],
)
def test_real_data_have_no_faults(data_dir, train, val):
    found = check_coco(*map(data_dir, train), val=tuple(map(data_dir, val)))
    assert kinds_in(found) == set()


def test_every_kind_is_planted():
    planted = {kind for _, kind in FAULTS.values()} | {"leak", "other classes"}
    assert planted == {kind for kind, about in KINDS.items() if about.severity != NOTE}
