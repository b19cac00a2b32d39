"""Uses the fixture of tests/mmdet_scope.py."""

from tests.mmdet_scope import mmdet_scope  # noqa: F401
