"""The command `sp-fast propose`: what it prints, and how it fails."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.commands.conftest import Command

RANDOM = [
    "--backbone",
    "random",
    "--center",
    "--similarity",
    "cosine",
    "--threshold",
    "0.7",
    "--size",
    "none",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """20 small noisy images with a box in them."""
    root = tmp_path / "images"
    root.mkdir()
    rng = np.random.default_rng(0)
    for number in range(20):
        pixels = rng.integers(0, 40, (48, 64, 3), dtype=np.uint8)
        pixels[10:30, number : number + 24] += np.array([200, 30, 90], dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number:03d}.png")
    return root


def test_masks_of_a_folder(command: Command, folder: Path, tmp_path: Path) -> None:
    (folder / "empty.jpg").touch()
    out = tmp_path / "masks.json"
    code, printed, progress = command("propose", folder, "--out", out, *RANDOM)
    assert code == 0
    coco = json.loads(out.read_text())
    masks = len(coco["annotations"])
    assert len(coco["images"]) == 20
    assert masks > 20
    assert f"20 images, {masks} masks ({masks / 20:.1f} per image) in 0:" in printed
    assert f"Masks: {out}" in printed
    assert f"Seeds: {tmp_path / 'masks.seeds.safetensors'}" in printed
    assert f"Skipped: 1 of 21 images could not be read: {folder / 'empty.jpg'} (the file is empty)" in printed
    assert "0/21 images" in progress
    assert "21/21 images" in progress


def test_options_reach_the_proposer(command: Command, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks.json"
    given = ["--preset", "official", "--grid", "4x6,2x2", "--nms", "mask", "--iou-threshold", "0.25"]
    given += [
        "--padding",
        "replicate",
        "--max-masks",
        "3",
        "--min-area",
        "5",
        "--min-score",
        "0",
        "--sigma",
        "1.5",
        "--refine",
        "segments",
        "--ignore-exif",
    ]
    code, _, _ = command("propose", folder, "--out", out, "--backbone", "random", "--size", "80x32", *given)
    assert code == 0
    options = json.loads(out.read_text())["info"]["options"]
    expected = {"preset": "official", "grid": [[4, 6], [2, 2]], "scales": None, "nms": "mask", "max_masks": 3}
    expected |= {"iou_threshold": 0.25, "min_area": 5, "min_score": 0.0, "sigma": 1.5, "size": [80, 32]}
    expected |= {"exif": "ignore", "refine": "segments"}
    expected |= {
        "similarity": "cosine",
        "min_center_height": 0.2,
        "backbone": "random",
        "padding": "replicate",
    }
    assert {name: options[name] for name in expected} == expected


@pytest.mark.parametrize(("size", "expected"), [("32,64", [32, 64]), ("48", [48])])
def test_sizes_and_thresholds_of_multiscale(
    size: str, expected: list[int], command: Command, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "masks.json"
    given = ["--backbone", "random", "--preset", "multiscale", "--grid", "4x4", "--threshold", "0.4,0.6"]
    given += ["--size", size]
    code, _, printed = command("propose", folder, "--out", out, *given)
    assert code == 0, printed
    written = json.loads(out.read_text())
    options = written["info"]["options"]
    assert options["sizes"] == expected
    assert options["threshold"] == [0.4, 0.6]
    assert options["ranking"] == "objectness"
    assert options["size"] is None
    assert written["annotations"]


def test_existing_file_and_overwrite(command: Command, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "masks.json"
    out.write_text("precious")
    code, _, error = command("propose", folder, "--out", out, *RANDOM)
    assert (code, out.read_text()) == (2, "precious")
    assert f"Error: out: {out} already exists" in error
    assert command("propose", folder, "--out", out, "--overwrite", *RANDOM)[0] == 0
    assert json.loads(out.read_text())["images"]


def test_interrupted_by_the_keyboard_then_resumed(
    command: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sp_fast.proposals.store import ProposalStore

    out, append, calls = tmp_path / "masks.json", ProposalStore.append, []

    def interrupted(self: ProposalStore, records: list) -> None:
        calls.append(records)
        if len(calls) > 5:
            raise KeyboardInterrupt
        append(self, records)

    with monkeypatch.context() as patch:
        patch.setattr(ProposalStore, "append", interrupted)
        code, _, error = command("propose", folder, "--out", out, "--batch-size", 2, *RANDOM)
    assert code == 130
    assert "Interrupted. Run the same command again to resume" in error
    assert not out.exists()
    code, _, error = command("propose", folder, "--out", out, "--batch-size", 2, *RANDOM, "--max-masks", 5)
    assert code == 2
    assert "max_masks: 20 before, 5 now" in error
    assert "--restart" in error
    code, printed, _ = command("propose", folder, "--out", out, "--batch-size", 2, *RANDOM)
    assert code == 0
    assert "20 images (10 of them from the interrupted run)" in printed


def test_shards(command: Command, folder: Path, tmp_path: Path) -> None:
    given = ["propose", folder, "--out", tmp_path / "masks.json", *RANDOM, "--shard"]
    code, printed, progress = command(*given, "2/3")
    assert code == 0
    assert "Shard 2/3: 7 images, " in printed
    assert "2 of 3 shards missing: shards 1, 3. The last to finish writes " in printed
    assert "7/7 images" in progress
    assert "1 of 3 shards missing: shard 3." in command(*given, "1/3")[1]
    code, printed, _ = command(*given, "3/3")
    assert code == 0
    assert printed.startswith("20 images, ")
    assert f"Masks: {tmp_path / 'masks.json'}" in printed


def test_torchrun(folder: Path, tmp_path: Path) -> None:
    """Two processes; one summary and the progress of both together."""
    out = tmp_path / "masks.json"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = ["-m", "sp_fast", "propose", folder, "--out", out, "--device", "cpu", *RANDOM]
    run = subprocess.run([*launcher, *command], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("20 images, ") == run.stdout.count("Masks: ") == 1
    assert run.stderr.count("20/20 images") == 1
    assert len(json.loads(out.read_text())["images"]) == 20
    assert not list(tmp_path.glob("*.partial"))


def test_weights_are_reported(command: Command, folder: Path, tmp_path: Path) -> None:
    import torchvision

    weights = tmp_path / "weights.pth"
    tensors = torchvision.models.resnet18(weights=None).state_dict()
    del tensors["layer4.1.conv2.weight"]
    torch.save(tensors, weights)
    given = ["propose", folder, "--out", tmp_path / "m.json", "--backbone", "resnet18", "--weights", weights]
    code, _, error = command(*given)
    assert code == 2
    assert "1 missing: layer4.1.conv2.weight" in error
    assert "--allow-partial" in error
    code, _, progress = command(*given, "--allow-partial", "--size", 64)
    assert code == 0
    assert "left out: fc; missing and left random: layer4.1.conv2.weight" in progress


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nowhere", *RANDOM], 2, "Error: no such folder of images: nowhere"),
        (["{images}"], 2, "the backbone needs weights"),
        (["{images}", "--weights", "none.pth"], 2, "Error: weights: no such file: none.pth"),
        (["{images}", "--weights", "{images}/000.png"], 2, "expected weights saved by torch.save"),
        (["{images}", *RANDOM, "--weights", "w.pth"], 2, "the random backbone takes none"),
        (
            ["{images}", "--backbone", "vgg16", "--weights", "w.pth"],
            2,
            "backbone: expected one of 'resnet18'",
        ),
        (["{images}", *RANDOM, "--threshold", "7"], 2, "threshold: expected a number in [0, 1], got 7.0"),
        (["{images}", *RANDOM, "--grid", "10"], 2, "expected 10x10, or several as 10x10,5x5, got '10'"),
        (["{images}", *RANDOM, "--scales", "1;2"], 2, "expected factors such as 1,0.5,0.25, got '1;2'"),
        (["{images}", *RANDOM, "--size", "big"], 2, "expected 640, 1333x800 or none, got 'big'"),
        (["{images}", *RANDOM, "--size", "9" * 20], 2, "expected numbers of at most 32768, got"),
        (["{images}", *RANDOM, "--size", "32,64"], 2, "expected one size without --ranking objectness"),
        (
            ["{images}", *RANDOM, "--preset", "multiscale", "--size", "80x32"],
            2,
            "expected longer sides such as 640,1280",
        ),
        (["{images}", *RANDOM, "--threshold", "0.3,0.5"], 2, "threshold: expected one value with ranking"),
        (["{images}", *RANDOM, "--device", "abacus"], 2, "abacus cannot be used here"),
        (["{images}", *RANDOM, "--preset", "mine"], 2, "'mine'"),
        (
            ["{images}", *RANDOM, "--shard", "8"],
            2,
            "expected a shard and the number of shards, such as 3/8, got '8'",
        ),
        (["{images}", *RANDOM, "--shard", "9/8"], 2, "expected a shard from 1/8 to 8/8, got '9/8'"),
        (["{images}", *RANDOM, "--gird", "5x5"], 2, "--gird"),
    ],
)
def test_bad_input(
    arguments: list[str], code: int, message: str, command: Command, folder: Path, tmp_path: Path
) -> None:
    filled = [argument.format(images=folder) for argument in arguments]
    found, printed, error = command("propose", *filled, "--out", tmp_path / "masks.json")
    assert (found, printed) == (code, "")
    assert message in error.replace("\n", " ")
    assert list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("out", "arguments", "message"),
    [
        ("images", [], "out: expected a file to write, got the folder"),
        ("there.json", [], "already exists; choose another file, or pass --overwrite"),
        ("masks.txt", [], "out: expected a file name that ends in .json"),
        ("masks.json", ["--threshold", "1.5"], "threshold: expected a number in [0, 1], got 1.5"),
        ("masks.json", ["--size", "640,1280"], "expected one size without --ranking objectness"),
        ("masks.json", ["--preset", "multiscale", "--size", "80x32"], "expected longer sides"),
    ],
)
def test_bad_input_is_refused_before_weights_are_read(
    out: str, arguments: list[str], message: str, command: Command, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "there.json").touch()
    given = ["--out", tmp_path / out, "--weights", tmp_path / "none.pth", *arguments]
    code, _, error = command("propose", folder, *given)
    assert code == 2
    assert message in error.replace("\n", " ")


def test_proposals_need_neither_mmdet_nor_pycocotools() -> None:
    code = (
        "import sys, sp_fast.proposals; "
        "print(*{'mmdet', 'mmengine', 'mmcv', 'pycocotools'} & set(sys.modules))"
    )
    found = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    assert found.stdout.strip() == ""
