"""Fixtures of the annotated folder."""

from tests.data.fixtures import scenes  # noqa: F401
