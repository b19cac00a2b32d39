"""Exported models against those they were made from."""

import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import sp_fast
from sp_fast.commands.app import run as main
from sp_fast.export import export_model
from sp_fast.export import model as exporting
from sp_fast.export.difference import Difference, difference
from sp_fast.export.families import segmenter
from sp_fast.export.model import image_scale
from sp_fast.inference.instances import Instances
from tests.docs.pages import ROOT, block
from tests.export.conftest import CLASSES, SCALE

SIZES = ((90, 150), (150, 90), (64, 64), (33, 200), (255, 257), (128, 96), (20, 20), (300, 400))


def images(count=1, sizes=SIZES):
    rng = np.random.default_rng(1)
    coarse = (rng.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8) for _ in sizes)
    for size, pixels in zip(sizes, coarse, strict=True):
        rows, columns = (np.arange(side) * 8 // side for side in size)
        yield pixels[:, rows[:, None], columns]


def test_the_model_finds_something(model):
    for batch in images():
        found = model.predict(batch[0], threshold=0.0)
        assert len(found) >= 5
        assert np.ptp(found.scores) > 0.1
        assert 0.05 < found.masks.mean() < 0.95


def test_onnx_equals_torch(model, onnx_file):
    other = sp_fast.load(onnx_file, device="cpu")
    assert other.classes == CLASSES
    for batch in images():
        expected, found = (one.predict(batch[0], threshold=0.0) for one in (model, other))
        assert difference(expected, found).tolerable


def test_an_image_too_thin_to_resize_is_named(onnx_file, program_file, capfd):
    for path in (onnx_file, program_file):
        with pytest.raises(ValueError, match=r"image: .* one of 1 x 4000 pixels \(height x width\): "):
            sp_fast.load(path, device="cpu").predict(np.zeros((1, 4000, 3), np.uint8))
    assert "Non-zero status" not in capfd.readouterr().err  # onnxruntime logs it too


def test_a_batch_equals_its_images(onnx_file):
    session = onnxruntime.InferenceSession(onnx_file)
    for batch in images(count=3, sizes=SIZES[:2]):
        together = session.run(None, {"images": batch})
        for k in range(3):
            alone = session.run(None, {"images": batch[k : k + 1]})
            ones = [
                Instances.from_masks(masks[row], scores[row], labels[row], CLASSES)
                for (scores, labels, _, masks), row in ((alone, 0), (together, k))
            ]
            assert difference(*ones).tolerable


def test_boxes_are_tight(onnx_file):
    session = onnxruntime.InferenceSession(onnx_file)
    batch = next(images())
    scores, labels, boxes, masks = session.run(None, {"images": batch})
    found = Instances.from_masks(masks[0], scores[0], labels[0], CLASSES)
    order = np.argsort(-scores[0], kind="stable")
    np.testing.assert_array_equal(boxes[0][order][masks[0].any((1, 2))[order]], found.boxes)


def test_the_file_says_what_it_is_and_not_where_it_was_made(onnx_file):
    model = onnx.load(onnx_file)
    onnx.checker.check_model(model)
    assert [one.name for one in model.graph.input] == ["images"]
    assert [one.name for one in model.graph.output] == ["scores", "labels", "boxes", "masks"]
    assert str(sp_fast.__path__[0]).encode() not in onnx_file.read_bytes()


def test_onnx_runs_without_mmdet_and_torch(onnx_file):
    code = (
        "import sys\n"
        "for name in ('mmdet', 'mmengine', 'mmcv', 'torch'): sys.modules[name] = None\n"
        "import numpy, sp_fast\n"
        f"model = sp_fast.load({str(onnx_file)!r})\n"
        "assert len(model.predict(numpy.zeros((50, 70, 3), numpy.uint8), threshold=0.0))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_program_equals_torch(model, program_file):
    other = sp_fast.load(program_file, device="cpu")
    assert other.classes == CLASSES
    for batch in images():
        expected, found = (one.predict(batch[0], threshold=0.0) for one in (model, other))
        assert difference(expected, found).tolerable


def test_safetensors_hold_the_whole_model(checkpoint, model, tmp_path):
    out = tmp_path / "new" / "tiny.safetensors"
    assert export_model(checkpoint, out, "safetensors") == Difference(0.0, 0.0)
    other = sp_fast.load(out, device="cpu")
    assert other.classes == CLASSES
    assert other.detector.state_dict().keys() == model.detector.state_dict().keys()
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_difference_leaves_no_file(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "compare", lambda *_: Difference(0.002, 0.0))
    with pytest.raises(ValueError, match=r"not written: .* 0\.200% of the masks' pixels"):
        export_model(checkpoint, tmp_path / "new" / "tiny.safetensors", "safetensors")
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten_unless_asked(checkpoint, tmp_path):
    out = tmp_path / "tiny.safetensors"
    out.write_text("mine")
    with pytest.raises(FileExistsError, match="--overwrite"):
        export_model(checkpoint, out, "safetensors")
    assert out.read_text() == "mine"
    export_model(checkpoint, out, "safetensors", overwrite=True)
    assert sp_fast.load(out).classes == CLASSES
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(IsADirectoryError, match="--out: expected a file to write, got the folder"):
        export_model(checkpoint, tmp_path / "folder.safetensors", "safetensors", overwrite=True)


@pytest.mark.parametrize(
    ("out", "format", "message"),
    [
        ("tiny.pt", "onnx", r"--out: expected .* ends in \.onnx"),
        ("tiny.onnx", "tflite", "--format: expected"),
        (
            "tiny.pt2",
            "onnx",
            r"--format, --out: expected .* ends in \.onnx for --format onnx, got .*tiny\.pt2",
        ),
        ("tiny.bin", None, r"--out: expected .* ends in \.onnx or \.pt2 or \.safetensors, got .*tiny\.bin"),
    ],
)
def test_other_formats_are_refused(checkpoint, tmp_path, out, format, message):
    with pytest.raises(ValueError, match=message):
        export_model(checkpoint, tmp_path / out, format)


def test_other_families_are_refused():
    with pytest.raises(ValueError, match=r"expected a detector that can be exported .*KNet.*, got Linear"):
        segmenter(torch.nn.Linear(1, 1), SCALE)


@pytest.mark.parametrize(
    "steps",
    [
        [],
        [dict(type="Resize", scale=(64, 64))],
        [dict(type="Resize", scale=(64, 64), keep_ratio=True), dict(type="Pad", size_divisor=32)],
    ],
)
def test_other_pipelines_are_refused(steps):
    with pytest.raises(ValueError, match="expected a test pipeline"):
        image_scale(steps)


def test_a_scale_of_one_number_is_both_sides():
    assert image_scale([dict(type="Resize", scale=384, keep_ratio=True)]) == (384, 384)


def test_exported_files_are_not_exported_again(onnx_file, tmp_path):
    with pytest.raises(ValueError, match="exported already"):
        export_model(onnx_file, tmp_path / "again.onnx")


@pytest.mark.parametrize("suffix", [".onnx", ".pt2", ".safetensors"])
def test_files_of_other_kinds_are_refused(tmp_path, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match=rf"^{path}: "):
        sp_fast.load(path)


def test_files_of_other_programs_are_refused(tmp_path):
    value = onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([], "empty", [value], [value])
    onnx.save(onnx.helper.make_model(graph, ir_version=8), tmp_path / "model.onnx")
    torch.export.save(torch.export.export(torch.nn.Identity(), (torch.ones(1),)), tmp_path / "model.pt2")
    save_file({"weight": torch.ones(1)}, tmp_path / "model.safetensors")
    for path in tmp_path.iterdir():
        with pytest.raises(ValueError, match=r"expected a .* that `sp-fast export` wrote"):
            sp_fast.load(path)


def test_the_command_reports_the_difference(checkpoint, tmp_path, capsys, monkeypatch):
    out = tmp_path / "tiny.safetensors"
    arguments = ["export", str(checkpoint), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["sp-fast", *arguments])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert "Largest difference from the model: 0.0000% of the masks' pixels" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main()
    assert capsys.readouterr().err.startswith(f"Error: --out: {out} exists; ")


def test_the_documented_code_runs(onnx_file, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    shutil.copy(onnx_file, "model.onnx")
    Image.fromarray(next(images())[0]).save("photo.jpg")
    exec(compile(block(ROOT / "docs" / "export.md", "onnxruntime.Inf"), "export.md", "exec"), {})
    assert capsys.readouterr().out.split()[0] in CLASSES


def test_a_device_that_is_not_there_is_named(onnx_file):
    with pytest.raises(ValueError, match=r"device: onnxruntime .* cannot use tpu here"):
        sp_fast.load(onnx_file, device="tpu")
