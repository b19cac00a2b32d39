"""Fixture of a folder of annotated images."""

from tests.data.fixtures import scenes  # noqa: F401
