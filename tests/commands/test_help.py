"""The help texts of all commands fit a terminal of 80 columns, and their examples can be pasted."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_command

from sp_fast.commands.app import app
from tests.commands.conftest import Command

pytest.importorskip("mmdet")


def names(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of a command and of those below it, without `sp-fast`."""
    yield path
    for name, command in getattr(group, "commands", {}).items():
        yield from names(command, (*path, name))


@pytest.mark.parametrize("words", list(names(get_command(app))), ids=" ".join)
def test_help_fits_80_columns(words: tuple[str, ...], command: Command) -> None:
    code, text, _ = command(*words, "--help")
    assert code == 0
    assert text
    assert [line for line in text.splitlines() if len(line) > 80] == []
    # Two lines joined because their source lacked a backslash.
    assert not re.search(r"sp-fast .*\S {2,}-", text)
