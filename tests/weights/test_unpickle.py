"""Foreign weights files: read without running code in them, or refused with a reason."""

import argparse
import collections
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sp_fast.weights.unpickle import Inert, load_foreign


class Payload:
    """Unpickles as a call of `function` with `args`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Config(dict):
    """A class that no reader of weights allows."""


def checkpoint():
    namespace = argparse.Namespace(arch="resnet50", epochs=200)
    return {
        "state_dict": collections.OrderedDict(
            weight=torch.arange(6.0).view(2, 3)[:, 1:], bias=torch.ones(2).half()
        ),
        "args": namespace,
        "config": Config(depth=50),
        "counts": collections.defaultdict(list, {"a": [1]}),
        "best": np.float64(0.25),
        "history": np.arange(3, dtype=">i4"),
        "names": np.array(["cat", "dog"]),
        "size": torch.Size([2, 3]),
        "parameter": torch.nn.Parameter(torch.tensor([3.0])),
        "epoch": 7,
    }


@pytest.mark.parametrize("zip_format", [True, False])
def test_builds_tensors_and_containers(tmp_path, zip_format):
    path = tmp_path / "weights.pth"
    expected = checkpoint()
    torch.save(expected, path, _use_new_zipfile_serialization=zip_format)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)

    loaded = load_foreign(path)
    assert type(loaded["state_dict"]) is collections.OrderedDict
    for name, tensor in expected["state_dict"].items():
        torch.testing.assert_close(loaded["state_dict"][name], tensor, rtol=0, atol=0)
    assert loaded["epoch"] == 7
    assert type(loaded["counts"]) is dict
    assert loaded["counts"] == {"a": [1]}
    assert loaded["best"] == 0.25
    np.testing.assert_array_equal(loaded["history"], expected["history"])
    np.testing.assert_array_equal(loaded["names"], expected["names"])
    assert loaded["size"] == (2, 3)
    assert loaded["parameter"].item() == 3.0

    args = loaded["args"]
    assert isinstance(args, Inert)
    assert args.origin == "argparse.Namespace"
    assert args.state == {"arch": "resnet50", "epochs": 200}
    assert isinstance(loaded["config"], Inert)
    assert loaded["config"].items == [("depth", 50)]


@pytest.mark.parametrize("zip_format", [True, False])
def test_runs_no_payload(tmp_path, zip_format):
    marker = tmp_path / "ran"
    command = f"touch {marker}"
    payloads = {
        "system": Payload(os.system, command),
        "eval": Payload(eval, f"__import__('os').system({command!r})"),
        "getattr": Payload(getattr, Payload(__import__, "os"), "system"),
        "nested": Payload(torch.storage._load_from_bytes, pickle.dumps(Payload(os.system, command))),
    }
    path = tmp_path / "weights.pth"
    torch.save({"weight": torch.ones(2), **payloads}, path, _use_new_zipfile_serialization=zip_format)

    loaded = load_foreign(path)
    assert not marker.exists()
    assert loaded["weight"].tolist() == [1.0, 1.0]
    assert all(isinstance(loaded[name], Inert) for name in payloads)
    assert loaded["system"].origin.endswith(".system")

    pickle.loads(pickle.dumps(payloads["system"]))
    assert marker.exists(), "the payload runs when the pickle is trusted"


def write_pickle_as_zip(path, program):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", program)
        archive.writestr("archive/version", "3\n")


@pytest.mark.parametrize(
    ("program", "complaint"),
    [
        # _rebuild_tensor_v2.__dict__ = {"x": 1}: state set on a function.
        (
            b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00xK\x01sb.",
            "sets the state of function",
        ),
        # A call of the result of a call: torch.Size([])().
        (b"\x80\x02ctorch\nSize\n)R)R.", "calls torch.Size"),
        # A numpy dtype of objects, whose buffer would be read as pointers.
        (b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00O8\x85R.", "dtype 'O8'"),
    ],
)
def test_refuses_unsafe_pickles(tmp_path, program, complaint):
    path = tmp_path / "weights.pth"
    write_pickle_as_zip(path, program)
    with pytest.raises(ValueError, match=complaint.replace("(", r"\(")) as error:
        load_foreign(path)
    assert str(path) in str(error.value)


def test_safetensors(tmp_path):
    save_file({"weight": torch.arange(3.0)}, tmp_path / "weights.safetensors")
    (tmp_path / "weights.bin").write_bytes((tmp_path / "weights.safetensors").read_bytes())
    for name in ("weights.safetensors", "weights.bin"):
        assert load_foreign(tmp_path / name)["weight"].tolist() == [0.0, 1.0, 2.0]


def whole(tmp_path):
    path = tmp_path / "whole.pth"
    torch.save({"weight": torch.zeros(2000)}, path)
    return path.read_bytes()


def without_directory(tmp_path):
    """The end of a zip archive without its contents."""
    return bytes(500) + whole(tmp_path)[-100:]


def legacy(tmp_path):
    path = tmp_path / "legacy.pth"
    torch.save({"weight": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
    return path.read_bytes()


def with_another_bit(tmp_path):
    content = bytearray(whole(tmp_path))
    content[content.index(bytes(4000)) + 2000] ^= 1
    return bytes(content)


def script(tmp_path):
    path = tmp_path / "script.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    return path.read_bytes()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("content", "what"),
    [
        (lambda _: b"", "an empty file"),
        (lambda _: b"<html>404 not found</html>", 'text ("<html>404'),
        (lambda _: b"\xff\xd8\xff\xe0" + bytes(100), "a JPEG image"),
        (lambda _: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (lambda tmp_path: whole(tmp_path)[:2000], "a zip archive that is cut off or damaged"),
        (lambda tmp_path: whole(tmp_path)[:-50], "a zip archive that is cut off or damaged"),
        (without_directory, "a zip archive that is damaged"),
        (with_another_bit, "a damaged file: the checksum of"),
        (lambda tmp_path: legacy(tmp_path)[:-2000], "a pickle that is cut off"),
        (lambda _: pickle.dumps({"a": 1}), "a pickle that is cut off, damaged, or not made by torch.save"),
        (script, "a TorchScript archive"),
    ],
    ids=[
        "empty",
        "text",
        "image",
        "lfs",
        "cut zip",
        "zip without its end",
        "damaged zip",
        "bit",
        "cut legacy",
        "pickle",
        "script",
    ],
)
def test_error_describes_the_file(tmp_path, content, what):
    path = tmp_path / "weights.pth"
    path.write_bytes(content(tmp_path))
    with pytest.raises(ValueError) as error:
        load_foreign(path)
    assert str(error.value).startswith(
        f"{path}: expected weights saved by torch.save or safetensors, got {what}"
    )


def test_damaged_safetensors_missing_file_folder_and_module(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"\x10" + bytes(7) + b"{}")
    with pytest.raises(ValueError, match="damaged"):
        load_foreign(tmp_path / "weights.safetensors")
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        load_foreign(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="a folder"):
        load_foreign(tmp_path)
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(ValueError, match=r"Linear: save its state_dict\(\)"):
        load_foreign(tmp_path / "module.pth")
