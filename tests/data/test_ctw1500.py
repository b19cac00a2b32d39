"""CTW1500 in its published forms, with images that have an EXIF orientation."""

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from sp_fast.data.coco import load_coco
from sp_fast.data.ctw1500 import convert_ctw1500
from sp_fast.data.prepared import write_checked


def ring(left, top, right, bottom):
    """14 corners: seven along the top, and seven back along the bottom."""
    columns = np.linspace(left, right, 7).round().astype(int).tolist()
    corners = [(x, top) for x in columns] + [(x, bottom) for x in columns[::-1]]
    return [value for corner in corners for value in corner]


BOXES = {"0001": [(4, 2, 28, 10), (30, 12, 54, 20)], "0002": [(2, 20, 20, 30)], "0003": []}
TEXTS = {"0001": ["ROUND, THE CORNER", "###"], "0002": ["é"], "0003": []}
ORIENTATION = {"0001": 3, "0002": 6, "0003": 1}
FORMS = ("xml", "txt", "curve")


def write_labels(form, folder, name):
    polygons = [ring(*box) for box in BOXES[name]]
    if form == "xml":
        boxes = "".join(
            f'<box height="{bottom - top}" left="{left}" top="{top}" width="{right - left}">'
            f"<label>{text}</label><segs>{','.join(map(str, polygon))}</segs>"
            '<pts x="5" y="6"/><pts x="9" y="6"/></box>'
            for (left, top, right, bottom), polygon, text in zip(
                BOXES[name], polygons, TEXTS[name], strict=True
            )
        )
        text = f'<Annotations><image file="{name}.jpg">{boxes}</image></Annotations>'
        (folder / f"{name}.xml").write_text(text, encoding="utf-8")
    elif form == "txt":
        lines = [
            ",".join(map(str, polygon)) + f",####{text}"
            for polygon, text in zip(polygons, TEXTS[name], strict=True)
        ]
        (folder / f"000{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    else:
        lines = []
        for box, polygon in zip(BOXES[name], polygons, strict=True):
            offsets = [value - box[k % 2] for k, value in enumerate(polygon)]
            lines.append(",".join(map(str, [*box, *offsets])))
        (folder / f"{name}.txt").write_text("\r\n".join(lines))


@pytest.fixture
def folders(tmp_path):
    """Images of 32 x 60 stored pixels, white where the labels are."""
    images = tmp_path / "images"
    images.mkdir()
    for name, boxes in BOXES.items():
        pixels = np.zeros((32, 60, 3), np.uint8)
        for left, top, right, bottom in boxes:
            pixels[top:bottom, left:right] = 255
        exif = Image.Exif()
        exif[0x0112] = ORIENTATION[name]
        Image.fromarray(pixels).save(images / f"{name}.jpg", exif=exif, quality=98)
    for form in FORMS:
        (tmp_path / form).mkdir()
        for name in BOXES:
            write_labels(form, tmp_path / form, name)
    return tmp_path


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_masks(folders, form):
    coco = convert_ctw1500(folders / "images", folders / form)
    sizes = [(image["file_name"], image["height"], image["width"]) for image in coco["images"]]
    assert sizes == [(f"{name}.jpg", 32, 60) for name in BOXES]
    assert coco["info"]["exif"] == "ignore"
    write_checked(coco, folders / "out.json")
    read = COCO(folders / "out.json")
    boxes = [(name, box) for name in BOXES for box in BOXES[name]]
    assert len(read.anns) == len(boxes)
    for annotation, (name, (left, top, right, bottom)) in zip(coco["annotations"], boxes, strict=True):
        expected = np.zeros((32, 60), np.uint8)
        expected[top:bottom, left:right] = 1
        np.testing.assert_array_equal(read.annToMask(annotation), expected)
        assert read.imgs[annotation["image_id"]]["file_name"] == f"{name}.jpg"
        assert annotation["bbox"] == [left, top, right - left, bottom - top]
        assert (annotation["area"], annotation["iscrowd"]) == (expected.sum(), 0)
    load_coco(folders / "out.json", folders / "images")


def test_masks_lie_on_the_text_in_training(folders):
    """Orientations 3 and 6 are ignored because the annotation file says so."""
    pytest.importorskip("mmdet")
    from mmdet.registry import DATASETS

    import sp_fast.models  # noqa: F401

    write_checked(convert_ctw1500(folders / "images", folders / "txt"), folders / "out.json")
    load = [{"type": "ReadImage"}, {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True}]
    dataset = DATASETS.build(
        {
            "type": "InstanceDataset",
            "ann_file": str(folders / "out.json"),
            "images": str(folders / "images"),
            "pipeline": [*load, {"type": "PackInstances"}],
            "_scope_": "mmdet",
        }
    )
    for sample in (dataset[0], dataset[1]):
        covered = sample["data_samples"].gt_instances.masks.masks.any(axis=0)
        gray = sample["inputs"].float().mean(0).numpy()
        assert gray[covered].mean() > 230
        assert gray[~covered].mean() < 20


@pytest.mark.parametrize(("form", "crowds"), [("xml", [0, 1, 0]), ("txt", [0, 1, 0]), ("curve", [0, 0, 0])])
def test_illegible_text_can_be_ignored(folders, form, crowds):
    coco = convert_ctw1500(folders / "images", folders / form, illegible="ignore")
    assert [one["iscrowd"] for one in coco["annotations"]] == crowds
    write_checked(coco, folders / "out.json")
    with pytest.raises(ValueError, match="illegible: expected 'keep' or 'ignore'"):
        convert_ctw1500(folders / "images", folders / form, illegible="drop")


@pytest.mark.parametrize(
    ("form", "name", "text", "message"),
    [
        ("xml", "0002.xml", "<Annotations><image>", r"0002\.xml: not XML"),
        ("xml", "0002.xml", "<a/>", r"0002\.xml: expected <Annotations> with <image>, got <a>"),
        (
            "xml",
            "0002.xml",
            "<Annotations><image><box><segs>1,2</segs></box></image></Annotations>",
            r"0002\.xml, box 1, segs: expected 28 integers, got 2",
        ),
        (
            "xml",
            "0002.xml",
            "<Annotations><image><box><segs>1,b</segs></box></image></Annotations>",
            r"0002\.xml, box 1, segs: expected integers, got '1,b'",
        ),
        ("txt", "0000002.txt", "1,2,####x", r"0000002\.txt, line 1: 2 integers and a text: expected 28"),
        ("txt", "0000002.txt", ",".join("1" * 28), r"line 1: 28 integers without #### and a text"),
        ("curve", "0002.txt", "\n1,2,a", r"0002\.txt, line 2: expected integers, got '1,2,a'"),
    ],
)
def test_broken_labels_are_named(folders, form, name, text, message):
    (folders / form / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        convert_ctw1500(folders / "images", folders / form)


def test_images_and_labels_must_belong_together(folders):
    (folders / "xml" / "0009.xml").write_text("<Annotations/>")
    with pytest.raises(ValueError, match=r"1 label files have no image in .*: 0009\.xml"):
        convert_ctw1500(folders / "images", folders / "xml")
    (folders / "xml" / "0002.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images have no label file .*: 0002\.jpg"):
        convert_ctw1500(folders / "images", folders / "xml")
    with pytest.raises(FileNotFoundError, match="no such folder of labels"):
        convert_ctw1500(folders / "images", folders / "none")
    (folders / "txt" / "0000002.txt").write_bytes(b"\xff\xfe1,2")
    with pytest.raises(ValueError, match=r"0000002\.txt: not UTF-8"):
        convert_ctw1500(folders / "images", folders / "txt")
