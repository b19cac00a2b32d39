"""Other label formats keep holes, disjoint parts, classes and places."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from sp_fast.data.check import check_coco
from sp_fast.data.formats import detect_format, to_coco
from sp_fast.data.rle import to_rle

HEIGHT, WIDTH = 60, 80


def rectangle(left, top, right, bottom):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


HOLED = rectangle(5, 5, 35, 35) & ~rectangle(15, 12, 25, 22)
APART = rectangle(45, 8, 55, 20) | rectangle(60, 30, 75, 50)
MASKS = (HOLED, APART)
# The outline of HOLED, with a cut of no width from its corner to the hole and back.
KEYHOLE = [
    (5, 5),
    (35, 5),
    (35, 35),
    (5, 35),
    (5, 5),
    (15, 12),
    (15, 22),
    (25, 22),
    (25, 12),
    (15, 12),
    (5, 5),
]
# The parts of APART, joined by a bridge of no width, as Ultralytics does.
BRIDGED = [(45, 8), (55, 8), (55, 20), (60, 30), (75, 30), (75, 50), (60, 50), (60, 30), (55, 20), (45, 20)]


@pytest.fixture
def images(tmp_path):
    """A folder with the image photo.png."""
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (WIDTH, HEIGHT), "grey").save(folder / "photo.png")
    return folder


def masks(coco):
    sizes = {image["id"]: (image["height"], image["width"]) for image in coco["images"]}
    return [
        coco_mask.decode(to_rle(one["segmentation"], *sizes[one["image_id"]])).astype(bool)
        for one in coco["annotations"]
    ]


def check(path, images, names, format):
    """The labels hold MASKS with these class names, and the check finds no fault."""
    assert detect_format(path) == format
    coco = to_coco(path, images)
    assert [image["file_name"] for image in coco["images"]] == ["photo.png"]
    of_id = {category["id"]: category["name"] for category in coco["categories"]}
    assert [of_id[one["category_id"]] for one in coco["annotations"]] == list(names)
    for found, wanted in zip(masks(coco), MASKS, strict=True):
        assert (found == wanted).all()
    assert not check_coco((path, coco), images).errors


def yolo_line(class_id, points):
    values = [f"{value:.6f}" for x, y in points for value in (x / WIDTH, y / HEIGHT)]
    return " ".join([str(class_id), *values])


def test_yolo(images, tmp_path):
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "photo.txt").write_text(f"{yolo_line(1, KEYHOLE)}\n\n{yolo_line(0, BRIDGED)}\n")
    (tmp_path / "data.yaml").write_text("train: images\nnames: {0: cat, 1: dog}\n")
    check(labels, images, ("dog", "cat"), "yolo")
    check(tmp_path / "data.yaml", images, ("dog", "cat"), "yolo")
    (tmp_path / "data.yaml").unlink()
    (labels / "classes.txt").write_text("cat\ndog\n")
    check(labels, images, ("dog", "cat"), "yolo")
    assert [one["name"] for one in to_coco(labels, images)["categories"]] == ["cat", "dog"]


def test_yolo_labels_without_an_image_are_named(images, tmp_path):
    for name in ("photo.txt", "gone.txt", "classes.txt"):
        (tmp_path / name).write_text("")
    with pytest.warns(UserWarning, match=r"left out 1 \.txt file without an image: gone"):
        to_coco(tmp_path, images, "yolo")


def test_supervision_changes_yolo_masks(images, tmp_path):
    """Why it is not used; once this fails, its reader may serve."""
    supervision = pytest.importorskip("supervision")
    (tmp_path / "photo.txt").write_text(f"{yolo_line(1, KEYHOLE)}\n{yolo_line(0, BRIDGED)}\n")
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\n")
    read = supervision.DetectionDataset.from_yolo(
        str(images), str(tmp_path), str(tmp_path / "data.yaml"), force_masks=True
    )
    found = read[0][2].mask
    assert [(one != wanted).sum() > 20 for one, wanted in zip(found, MASKS, strict=True)] == [True, True]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2 0.2", "line 1: expected a polygon, got a box"),
        ("0 0.5 0.5 0.2", "line 1: expected 'class x0"),
        ("0 0.1 0.1 0.5 x 0.5 0.5", "line 1: expected numbers"),
        ("0 8 8 40 8 40 40", r"line 1: expected coordinates in 0\.\.1, got 40"),
    ],
)
def test_bad_yolo_line_is_named(line, message, images, tmp_path):
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "photo.txt").write_text(line)
    with pytest.raises(ValueError, match=rf"photo\.txt, {message}"):
        to_coco(labels, images)


def labelme(shapes):
    about = {"imagePath": "..\\images\\photo.png", "imageHeight": HEIGHT, "imageWidth": WIDTH}
    return json.dumps({"version": "5.5.0", "shapes": shapes, **about})


def corners(mask):
    y, x = np.nonzero(mask)
    return [[int(x.min()), int(y.min())], [int(x.max()) + 1, int(y.max()) + 1]]


def test_labelme(images, tmp_path):
    file = io.BytesIO()
    (left, top), (right, bottom) = corners(HOLED)
    Image.fromarray(HOLED[top:bottom, left:right]).save(file, "png")
    drawn = base64.b64encode(file.getvalue()).decode()
    first = {"label": "dog", "group_id": None, "shape_type": "mask", "points": corners(HOLED), "mask": drawn}
    parts = [
        {
            "label": "cat",
            "group_id": 3,
            "shape_type": "polygon",
            "points": [[45, 8], [55, 8], [55, 20], [45, 20]],
        },
        {"label": "cat", "group_id": 3, "shape_type": "rectangle", "points": [[60, 30], [75, 50]]},
        {"label": "point of interest", "group_id": None, "shape_type": "point", "points": [[1, 2]]},
    ]
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "photo.json").write_text(labelme([first, *parts[:2]]))
    check(tmp_path / "labels", images, ("dog", "cat"), "labelme")
    (tmp_path / "labels" / "photo.json").write_text(labelme(parts))
    with pytest.warns(UserWarning, match="left out shapes that have no mask: 1 of the type point"):
        assert len(to_coco(tmp_path / "labels", images)["annotations"]) == 1


@pytest.mark.parametrize(
    "points", [[[60, 50], [75, 30]], [[60, 30], [75, 30], [75, 50], [60, 50]]], ids=["corners", "outline"]
)
def test_labelme_rectangles(points, images, tmp_path):
    shape = {"label": "cell", "shape_type": "rectangle", "points": points}
    (tmp_path / "photo.json").write_text(labelme([shape]))
    (mask,) = masks(to_coco(tmp_path / "photo.json", images, "labelme"))
    assert (mask == rectangle(60, 30, 75, 50)).all()
    (tmp_path / "photo.json").write_text(labelme([shape | {"points": points[:1]}]))
    with pytest.raises(ValueError, match=r"shapes\[0\]: expected the points of a rectangle, got 1"):
        to_coco(tmp_path / "photo.json", images, "labelme")


@pytest.mark.parametrize("wrong", [float("inf"), float("nan"), 10**400])
@pytest.mark.parametrize("kind", ["polygon", "rectangle", "circle", "mask"])
def test_labelme_points_are_finite(kind, wrong, images, tmp_path):
    png = io.BytesIO()
    Image.new("L", (4, 4), 255).save(png, format="PNG")
    mask = base64.b64encode(png.getvalue()).decode()
    shape = {"label": "dog", "shape_type": kind, "points": [[wrong, 1], [5, 5], [1, 5]], "mask": mask}
    (tmp_path / "photo.json").write_text(labelme([shape]))
    with pytest.raises(ValueError, match=rf"photo\.json: shapes\[0\]: expected the points of a {kind}, got "):
        to_coco(tmp_path / "photo.json", images, "labelme")


def test_labelme_circle(images, tmp_path):
    circle = {"label": "cell", "shape_type": "circle", "points": [[40, 30], [40, 20]]}
    (tmp_path / "photo.json").write_text(labelme([circle]))
    (mask,) = masks(to_coco(tmp_path / "photo.json", images, "labelme"))
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    assert (mask != ((x - 40) ** 2 + (y - 30) ** 2 < 100)).sum() < 12


def indexed(values, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values.astype(np.uint8))
    image.putpalette([(37 * k) % 256 for k in range(768)])
    image.save(path)


def test_voc(images, tmp_path):
    objects = np.zeros((HEIGHT, WIDTH), int)
    objects[HOLED], objects[APART] = 1, 2
    objects[:, -1] = 255  # void
    classes = np.where(objects == 1, 12, np.where(objects == 2, 8, objects))
    indexed(objects, tmp_path / "voc/SegmentationObject/photo.png")
    indexed(classes, tmp_path / "voc/SegmentationClass/photo.png")
    check(tmp_path / "voc", images, ("dog", "cat"), "voc")


def test_voc_in_colours_with_a_labelmap(images, tmp_path):
    objects = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    classes = objects.copy()
    objects[HOLED], objects[APART] = (0, 128, 0), (128, 0, 0)
    classes[HOLED], classes[APART] = (250, 50, 83), (61, 61, 245)
    for name, pixels in (("SegmentationObject", objects), ("SegmentationClass", classes)):
        (tmp_path / "voc" / name).mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "voc" / name / "photo.png")
    lines = "# label:color_rgb:parts:actions\nbackground:0,0,0::\nmoth:61,61,245::\nbee:250,50,83::\n"
    (tmp_path / "voc/labelmap.txt").write_text(lines)
    check(tmp_path / "voc", images, ("bee", "moth"), "voc")


def test_cityscapes(images, tmp_path):
    (images / "ulm").mkdir()
    (images / "photo.png").rename(images / "ulm/ulm_0_1_leftImg8bit.png")
    labels = np.full((HEIGHT, WIDTH), 7)  # road
    labels[HOLED], labels[APART] = 24000, 26001
    labels[55:, :] = 26  # a group of cars
    (tmp_path / "gtFine/ulm").mkdir(parents=True)
    Image.fromarray(labels.astype(np.uint16)).save(tmp_path / "gtFine/ulm/ulm_0_1_gtFine_instanceIds.png")
    assert detect_format(tmp_path / "gtFine") == "cityscapes"
    coco = to_coco(tmp_path / "gtFine", images)
    assert coco["images"][0]["file_name"] == "ulm/ulm_0_1_leftImg8bit.png"
    by_class = {
        (coco["categories"][one["category_id"] - 1]["name"], one["iscrowd"]): mask
        for one, mask in zip(coco["annotations"], masks(coco), strict=True)
    }
    assert by_class.keys() == {("person", 0), ("car", 0), ("car", 1)}
    assert (by_class["person", 0] == HOLED).all()
    assert (by_class["car", 0] == APART).all()
    assert not check_coco((tmp_path, coco), images).errors


def test_cityscapes_polygons_in_front_hide_others(images, tmp_path):
    shapes = [("car", corners(HOLED)), ("pole", [[10, 0], [20, 40]]), ("cargroup", [[50, 40], [70, 55]])]
    objects = [
        {"label": label, "polygon": [[left, top], [right, top], [right, bottom], [left, bottom]]}
        for label, ((left, top), (right, bottom)) in shapes
    ]
    value = {"imgHeight": HEIGHT, "imgWidth": WIDTH, "objects": objects}
    (tmp_path / "photo_gtFine_polygons.json").write_text(json.dumps(value))
    coco = to_coco(tmp_path, images)
    assert sorted(one["iscrowd"] for one in coco["annotations"]) == [0, 1]
    image = Image.new("1", (WIDTH, HEIGHT))
    pen = ImageDraw.Draw(image)
    pen.rectangle([5, 5, 35, 35], fill=1)
    pen.rectangle([10, 0, 20, 40], fill=0)
    car = next(mask for one, mask in zip(coco["annotations"], masks(coco), strict=True) if not one["iscrowd"])
    assert (car == np.asarray(image)).all()


def test_what_cannot_be_read_is_named(images, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="expected labels of YOLO"):
        to_coco(empty, images)
    with pytest.raises(FileNotFoundError, match="no such labels"):
        to_coco(tmp_path / "none", images)
    with pytest.raises(ValueError, match="format: expected auto, coco, yolo"):
        to_coco(empty, images, "kitti")
    for format in ("yolo", "labelme", "voc", "cityscapes"):
        with pytest.raises(ValueError, match="empty"):
            to_coco(empty, images, format)
    (empty / "data.yaml").write_text("names")
    with pytest.raises(ValueError, match=r"data\.yaml: expected YOLO's data\.yaml"):
        to_coco(empty / "data.yaml", images)
