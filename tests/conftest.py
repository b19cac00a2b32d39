"""Fixtures shared by all tests."""

import os
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
