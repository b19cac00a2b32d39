"""Fixtures shared by all tests."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


class DataDir:
    """The folder of real data, SP_FAST_DATA; a test whose file is missing is skipped, naming it."""

    def __init__(self, root: str | None) -> None:
        self.root = Path(root) if root else None

    def __call__(self, name: str) -> Path:
        if self.root is None:
            pytest.skip(f"SP_FAST_DATA is not set: needs {name}")
        path = self.root / name
        if not path.exists():
            pytest.skip(f"SP_FAST_DATA has no {name}")
        return path


@pytest.fixture(scope="session")
def data_dir() -> DataDir:
    """`data_dir("knet_golden.pt")` is the path of that file; the test is skipped if it is missing."""
    return DataDir(os.environ.get("SP_FAST_DATA"))


@pytest.fixture(autouse=True)
def _new_process() -> Iterator[None]:
    """Mmengine keeps loggers, visualizers and scopes for the life of a process; a command has its own."""
    yield
    if "mmengine.runner" in sys.modules:
        forget_runs()


def forget_runs() -> None:
    """Makes the next training in this process log to its own folder, with its own default registry."""
    from mmdet.visualization import DetLocalVisualizer
    from mmengine.logging import MessageHub, MMLogger
    from mmengine.registry import DefaultScope

    for cls in (DetLocalVisualizer, MMLogger, MessageHub, DefaultScope):
        cls._instance_dict.clear()
