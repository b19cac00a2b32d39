"""Tiled prediction: objects that seams cut come out whole, and once."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from sp_fast.inference.tiles import _spans
from tests.inference.components import Components


def image_with(*boxes, size=(300, 340), value=255):
    image = np.zeros((*size, 3), np.uint8)
    for y0, x0, y1, x1 in boxes:
        image[y0:y1, x0:x1] = value
    return image


def as_set(found):
    return {(int(label), mask.tobytes()) for label, mask in zip(found.labels, found.masks, strict=True)}


SCENES = {
    "within a tile": [(10, 10, 30, 40)],
    "across two tiles": [(20, 90, 60, 190)],
    "across four tiles": [(80, 80, 200, 220)],
    "over the whole image": [(5, 5, 295, 335)],
    "many": [
        (5, 5, 40, 50),
        (90, 60, 140, 230),
        (60, 250, 260, 290),
        (200, 20, 280, 120),
        (150, 110, 170, 115),
    ],
    "none": [],
}


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("sees_whole", [True, False])
def test_tiles_find_what_the_whole_image_shows(scene, sees_whole):
    image = image_with(*SCENES[scene])
    expected = Components().predict(image)
    assert len(expected) == len(SCENES[scene])
    model = Components() if sees_whole else Components(limit=128)
    found = model.predict(image, tile=128)
    assert as_set(found) == as_set(expected)
    assert (np.diff(found.scores) <= 0).all()
    assert model.calls[0] == image.shape
    assert set(model.calls[1:]) == {(128, 128, 3)}


def test_classes_are_not_merged():
    image = image_with((20, 90, 60, 140)) + image_with((20, 140, 60, 190), value=200)
    # Two classes side by side are one component to the model, so each is drawn apart.
    image[:, 140] = 0
    found = Components(limit=128).predict(image, tile=128)
    assert sorted(found.labels.tolist()) == [0, 1]


def test_a_piece_of_an_object_that_only_the_whole_image_shows_is_left_out():
    class SeesPieces(Components):
        """In a tile, only what touches its left edge is found: pieces that no neighbour shares."""

        def _find(self, image):
            found = super()._find(image)
            return found if image.shape == whole.shape else found[found.boxes[:, 0] == 0]

    whole = image_with((80, 80, 200, 300))
    found = SeesPieces().predict(whole, tile=128)
    assert as_set(found) == as_set(Components().predict(whole))


def test_small_images_are_not_tiled():
    model = Components()
    model.predict(image_with(size=(90, 100)), tile=128)
    assert model.calls == [(90, 100, 3)]


@pytest.mark.parametrize("length", [65, 128, 129, 230, 231, 1000])
def test_spans_cover_the_side_and_overlap(length):
    spans = _spans(length, 128)
    assert spans[0][0] == 0
    assert spans[-1][1] == length
    assert all(later[0] <= earlier[1] - 0.2 * 128 + 1 for earlier, later in itertools.pairwise(spans))
