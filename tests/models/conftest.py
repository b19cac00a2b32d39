"""mmdet's registry for everything these tests build."""

import pytest
from mmengine.registry import DefaultScope


@pytest.fixture(autouse=True)
def _mmdet_scope():
    with DefaultScope.overwrite_default_scope("mmdet"):
        yield
