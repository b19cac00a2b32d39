"""Scenes to train on, and a clean slate for each command that runs in the tests' process."""

import pytest

pytest.importorskip("mmdet")

import sp_fast.models  # noqa: F401

# isort: split
from mmdet.visualization import DetLocalVisualizer
from mmengine.logging import MessageHub, MMLogger

from tests.training.runs import write_scenes


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture(autouse=True)
def _new_process():
    """Mmengine keeps loggers and visualizers by name for the life of a process; a command has its own."""
    yield
    for cls in (DetLocalVisualizer, MMLogger, MessageHub):
        cls._instance_dict.clear()
