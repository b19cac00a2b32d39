"""Signals while the command line is being imported: one line at most, and the usual exit status."""

import signal
import subprocess
import sys
import time

import pytest

ENTRIES = {
    "sp-fast": "from sp_fast.cli import main; main()",
    "python -m sp_fast": "import runpy; runpy.run_module('sp_fast', run_name='__main__')",
}
# Sends itself the signal in the middle of importing a module that is found only there.
HARNESS = """
import importlib.abc, os, signal, sys

class Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), {number})

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
sys.meta_path.insert(0, Finder())
sys.argv = ["sp-fast", "propose", ".", "--backbone", "random", "--out", "a.json"]
{entry}
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("entry", "module"), [("sp-fast", "typer"), ("sp-fast", "torch"), ("python -m sp_fast", "typer")]
)
def test_a_signal_during_the_imports(entry, module, number, tmp_path):
    code = HARNESS.format(module=module, number=int(number), entry=ENTRIES[entry])
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 128 + number
    assert done.stdout == ""
    assert done.stderr == ("Interrupted.\n" if number == signal.SIGINT else "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_a_command_that_waits(number, tmp_path):
    code = (
        "import signal, time; from sp_fast.commands import app; from sp_fast.cli import main; "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        "app.app = lambda: (print('started', flush=True), time.sleep(60)); main()"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True, cwd=tmp_path)
    assert process.stdout.readline() == "started\n"
    time.sleep(0.1)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert said == ("Interrupted.\n" if number == signal.SIGINT else "")
