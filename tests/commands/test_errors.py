"""Errors in processes that load data are one line, as others are."""

import warnings

import pytest
from torch.utils.data import DataLoader, Dataset

import sp_fast
from sp_fast.commands import app as cli
from sp_fast.data.image_faults import unlisted
from sp_fast.data.images import BrokenImageError, TooManyBrokenError


def test_a_wrong_choice_names_the_right_ones(command, tmp_path):
    code, _, err = command("propose", tmp_path, "--out", tmp_path / "a.json", "--preset", "multi")
    assert code == 2
    assert "'--preset': 'multi' is not one of 'paper', 'official', 'multiscale'" in err


@pytest.mark.parametrize("name", [[], ["predict"], ["data", "masks"], ["train"]])
def test_help_has_a_short_name(command, name):
    code, out, _ = command(*name, "-h")
    assert code == 0
    assert " ".join(["sp-fast", *name]) in out
    assert "-h, --help" in out
    assert out == command(*name, "--help")[1]


def test_the_version(command):
    assert command("--version") == (0, f"sp_fast {sp_fast.__version__}\n", "")


class Broken(Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise self.error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (BrokenImageError("a.png", "the file is empty"), "a.png: the file is empty"),
        (TooManyBrokenError("1 of 2 images: a.png (empty)"), "1 of 2 images: a.png (empty)"),
        (OSError(2, "No such file", "a.png"), "[Errno 2] No such file: 'a.png'"),
    ],
)
def test_errors_of_other_processes_are_one_line(error, message, monkeypatch, capsys):
    monkeypatch.setattr(cli, "app", lambda: next(iter(DataLoader(Broken(error), num_workers=1))))
    with pytest.raises(SystemExit) as stop:
        cli.run()
    assert stop.value.code == 2
    assert capsys.readouterr().err == f"Error: {message}\n"


def test_a_warning_is_one_line_and_said_once(tmp_path, monkeypatch, capsys):
    for name in ("a.png", "b.DNG"):
        (tmp_path / name).touch()

    def look_twice():
        unlisted([], tmp_path)
        unlisted([], tmp_path)
        warnings.warn_explicit("of another package", UserWarning, "/other.py", 3)

    monkeypatch.setattr(cli, "app", look_twice)
    with pytest.warns(UserWarning, match="of another package") as others:
        cli.run()
    assert len(others) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"Warning: {tmp_path}: left out 1 image ")
    assert line.endswith("b.DNG")


def allocate():
    import torch

    torch.empty(2**50)


def exhaust():
    raise MemoryError


def start():
    raise RuntimeError("can't start new thread")  # as Python's threading says it


def allocate_on_gpu():
    import torch

    # As PyTorch says it, shortened.
    raise torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which "
        "1.12 GiB is free. Of the allocated memory 76.00 GiB is allocated by PyTorch."
    )


@pytest.mark.parametrize("needs", [allocate, exhaust, start, allocate_on_gpu])
def test_a_full_memory_is_one_line(needs, monkeypatch, capsys):
    monkeypatch.setattr(cli, "app", needs)
    with pytest.raises(SystemExit) as stop:
        cli.run()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Error: not enough memory (")


def test_a_full_gpu_says_what_needs_less(monkeypatch, capsys):
    monkeypatch.setattr(cli, "app", allocate_on_gpu)
    with pytest.raises(SystemExit):
        cli.run()
    assert capsys.readouterr().err == (
        "Error: not enough memory (CUDA out of memory. Tried to allocate 2.00 GiB; fewer images at once "
        "(--batch-size 1) or smaller ones need less, --device cpu needs none)\n"
    )
