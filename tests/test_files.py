"""Atomic writes."""

import json

import pytest

from sp_fast.files import replacing, write_json


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
