"""The commands of the documentation exist, with the options and configs that they are given."""

import re
import shlex

import pytest
from typer.testing import CliRunner

pytest.importorskip("mmdet")

from sp_fast.cli import app
from sp_fast.configs import find_config
from tests.docs.pages import PAGES

# A name that stands for the reader's own.
PLACEHOLDERS = {"CONFIG", "NAME", "NAME|FILE.py", "FILE.py", "DIR", "..."}


def commands() -> list[str]:
    """Every command of `sp-fast` in a block of code or between backquotes, once."""
    found = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        found += re.findall(r"^\s*(?:\S+=\S+ )?(sp-fast [^#\n&]+)", text, re.MULTILINE)
        found += re.findall(r"`(sp-fast [^`]+)`", text)
    return sorted({" ".join(command.split()) for command in found})


def help_of(words: list[str]) -> tuple[str, list[str]]:
    """The help of the command that the words begin with, and the words after its name."""
    depth = 2 if words[0] == "experiment" else 1
    result = CliRunner().invoke(app, [*words[:depth], "--help"])
    assert result.exit_code == 0, result.output
    return result.output, words[depth:]


@pytest.mark.parametrize("command", commands())
def test_the_command_exists(command):
    words = shlex.split(command.replace("[", "").replace("]", ""))[1:]
    text, rest = help_of(words)
    known = set(re.findall(r"--[a-z-]+", text))
    assert {word for word in rest if word.startswith("--")} <= known
    if words[0] == "train" and rest and not rest[0].startswith("--") and rest[0] not in PLACEHOLDERS:
        assert find_config(rest[0]).is_file()


def test_there_are_commands():
    assert {"propose", "train", "experiment", "demo"} <= {command.split()[1] for command in commands()}
