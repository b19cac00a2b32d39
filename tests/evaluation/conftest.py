"""Annotated scenes, and detections in them."""

import pytest

from sp_fast.data.coco import load_coco
from sp_fast.data.synthetic import SetOptions, make_set
from tests.data.perturbed import perturbed


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """Folder with validation.json, 6 images of 96 x 96 pixels, and their folder `validation`."""
    folder = tmp_path_factory.mktemp("scenes")
    return make_set(folder, SetOptions(size=96, unlabelled=0, labelled=0, validation=6))


@pytest.fixture
def truth(scenes):
    """The annotations of the scenes."""
    return load_coco(scenes / "validation.json")


@pytest.fixture
def results(truth):
    """Perturbed objects as results."""
    return perturbed(truth)
