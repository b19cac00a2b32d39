"""Commands in the documentation exist, as do their options and configs."""

import re
import shlex

import pytest
from typer.testing import CliRunner

pytest.importorskip("mmdet")

from sp_fast.commands.app import app
from sp_fast.configs import find_config
from sp_fast.experiments.paper.inputs import inputs
from tests.docs.pages import PAGES

# Placeholders for names that readers choose.
PLACEHOLDERS = {"CONFIG", "NAME", "NAME|FILE.py", "FILE.py", "DIR", "..."}


def commands() -> list[str]:
    """Every distinct `sp-fast` command in a code block, between backquotes, or in the experiments' errors."""
    found = []
    for page in PAGES:
        text = page.read_text().replace("\\\n", " ")
        found += re.findall(r"^\s*(?:\S+=\S+ )?(sp-fast [^#\n&]+)", text, re.MULTILINE)
        found += re.findall(r"`(sp-fast [^`]+)`", text)
        found += [one.replace("_", "-", 1) for one in re.findall(r"-m (sp_fast [^#\n&]+)", text)]
    # Commands in the errors about missing inputs of the paper's experiments.
    for how in inputs("DATA", "r50").values():
        found += re.findall(r"(sp-fast [^,]+)", how)
    return sorted({" ".join(command.split()) for command in found})


def help_of(words: list[str]) -> tuple[str, list[str]]:
    """The help text of the command at the start of `words`, and the words after its name."""
    depth = 2 if words[0] in ("experiment", "data") else 1
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


def test_the_main_commands_are_documented():
    assert {"propose", "train", "experiment", "demo"} <= {command.split()[1] for command in commands()}
