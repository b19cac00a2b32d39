"""Runs the console script within this process."""

import sys

import pytest

from sp_fast.commands import app as cli


class Command:
    """Runs the console script within this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capfd = monkeypatch, capfd

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        self._monkeypatch.setattr(sys, "argv", ["sp-fast", *map(str, arguments)])
        self._monkeypatch.setenv("COLUMNS", "80")
        self._capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.run()
        out, err = self._capfd.readouterr()
        assert "Traceback" not in err
        code = stop.value.code
        return code if isinstance(code, int) else int(code is not None), out, err


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return Command(monkeypatch, capfd)
