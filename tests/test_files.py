"""Atomic writes."""

import io
import json
from pathlib import Path

import pytest
import torch

from sp_fast.files import replacing, write_json, write_tensors


def test_the_old_file_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "folder" / "value.json"
    write_json({"a": 1}, path)

    def fail():
        with replacing(path) as file:
            file.write(b"half")
            assert json.loads(path.read_text()) == {"a": 1}
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(path.parent.iterdir()) == [path]
    write_json("ü", path)
    assert json.loads(path.read_text(encoding="utf-8")) == "ü"


@pytest.mark.parametrize("size", [10, 3_000_000])
def test_a_full_disk_error_names_the_file(tmp_path, size, monkeypatch):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full")
    plain = Path.open

    def on_full(path, mode):
        path.symlink_to(full)
        return plain(path, mode)

    monkeypatch.setattr(Path, "open", on_full)
    with pytest.raises(OSError, match=r"no space left on the disk, .* MB for this file: '.*latest\.pth'"):
        write_tensors({"a": torch.zeros(size)}, tmp_path / "latest.pth")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_within_a_write_stays_what_it_is(tmp_path, monkeypatch):
    class Interrupted(io.BytesIO):
        def write(self, _):
            raise KeyboardInterrupt

    monkeypatch.setattr(Path, "open", lambda *_: Interrupted())
    with pytest.raises(KeyboardInterrupt):
        write_tensors({"a": torch.zeros(10)}, tmp_path / "latest.pth")
