"""The instances of an image: selection, pictures, other libraries; and what predict accepts."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from PIL import Image

from sp_fast.inference.instances import Instances
from tests.inference.components import Components


@pytest.fixture
def found():
    masks = np.zeros((4, 40, 60), bool)
    masks[0, 5:10, 20:30] = masks[1, 0:40, 0:8] = masks[3, 39, 59] = True  # the third is empty
    return Instances.from_masks(masks, np.array([0.2, 0.9, 0.8, 0.5]), np.array([1, 0, 0, 1]), ("cat", "dog"))


def test_best_first_with_tight_boxes_and_no_empty_mask(found):
    assert found.names == ["cat", "dog", "dog"]
    assert found.scores.tolist() == pytest.approx([0.9, 0.5, 0.2])
    assert found.boxes.tolist() == [[0, 0, 8, 40], [59, 39, 60, 40], [20, 5, 30, 10]]
    assert (found.masks.dtype, found.boxes.dtype) == (bool, np.float32)
    assert (found.scores.dtype, found.labels.dtype) == (np.float32, np.int64)


def test_select(found):
    assert len(found.select(0.5)) == 2
    assert len(found.select(0.0, 1)) == 1
    assert len(found.select(1.0)) == 0
    assert found.select(1.0).boxes.shape == (0, 4)


def test_to_supervision(found, monkeypatch):
    pytest.importorskip("supervision")
    detections = found.to_supervision()
    assert detections.xyxy.tolist() == found.boxes.tolist()
    assert detections.data["class_name"].tolist() == found.names
    assert (detections.mask == found.masks).all()
    assert len(found.select(1.0).to_supervision()) == 0
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ImportError, match="pip install supervision"):
        found.to_supervision()


def test_draw(found):
    image = np.full((40, 60, 3), 120, np.uint8)
    picture = found.draw(image)
    assert picture.size == (60, 40)
    assert (np.asarray(picture) != 120).any()
    assert (np.asarray(found.draw(Image.fromarray(image))) == np.asarray(picture)).all()
    assert found.draw(image, side=240).size == (240, 160)
    assert (np.asarray(found.select(1.0).draw(image)) == 120).all()
    with pytest.raises(ValueError, match=r"40 x 60 .height x width., got 10 x 60"):
        found.draw(image[:10])


def test_predict_takes_paths_pil_images_and_arrays(tmp_path):
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[2:5, 3:9] = 255
    turned = Image.fromarray(pixels)
    exif = turned.getexif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    turned.save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    model = Components()
    path, text, pil, array, rotated = model.predict(
        [
            tmp_path / "image.png",
            str(tmp_path / "image.png"),
            Image.fromarray(pixels),
            pixels,
            tmp_path / "turned.png",
        ]
    )
    for one in (path, text, pil, model.predict(pixels)):
        assert (one.masks == array.masks).all()
    assert rotated.masks.shape == (1, 30, 20)
    assert model.predict(Image.open(tmp_path / "turned.png")).masks.shape == (1, 30, 20)
    assert model.predict([]) == []


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (np.zeros((4, 4), np.uint8), {}, r"image: .*uint8 \[H, W, 3\], got uint8 \[4, 4\]"),
        (np.zeros((4, 4, 3)), {}, r"image: .*got float64 \[4, 4, 3\]"),
        (np.zeros((0, 4, 3), np.uint8), {}, r"image: .*got uint8 \[0, 4, 3\]"),
        (3, {}, "image: expected a path, a PIL image or an array.*got int"),
        (np.zeros((4, 4, 3), np.uint8), {"threshold": 30}, "threshold: expected a score from 0 to 1, got 30"),
        (np.zeros((4, 4, 3), np.uint8), {"top_k": 0}, "top_k: expected a whole number of at least 1, got 0"),
        (np.zeros((4, 4, 3), np.uint8), {"tile": 8}, "tile: expected a side of at least 64 pixels, got 8"),
    ],
)
def test_bad_arguments_are_named(image, options, message):
    with pytest.raises(ValueError, match=message):
        Components().predict(image, **options)


def test_missing_image(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.jpg"):
        Components().predict(tmp_path / "no.jpg")
