"""The commands `sp-fast data ...`: files, what is printed, and errors in one line."""

import hashlib
import json
import sys

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from sp_fast.commands import app as cli
from sp_fast.data.store import open_store
from tests.data.fixtures import scenes  # noqa: F401


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the console script within this process: exit status, standard output and standard error."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["sp-fast", "data", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            cli.run()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return call


def ids(path):
    return [image["id"] for image in json.loads(path.read_text())["images"]]


def test_coco_split_writes_both_parts_and_the_ids(scenes, run):  # noqa: F811
    out, rest = scenes / "third.json", scenes / "rest.json"
    code, printed, _ = run("coco-split", scenes / "masks.json", "--share", 34, "--out", out, "--rest", rest)
    assert code == 0
    chosen, others = ids(out), ids(rest)
    assert len(chosen) == 1
    assert sorted(chosen + others) == [10, 11, 12]
    digest = hashlib.sha256(f"{chosen[0]}\n".encode()).hexdigest()
    assert (scenes / "third.ids.txt").read_text() == f"{chosen[0]}\n"
    assert f"1 of 3 images), SHA-256 {digest}" in printed
    both = [json.loads(path.read_text()) for path in (out, rest)]
    assert sum(len(one["annotations"]) for one in both) == 5
    assert [one["info"]["split"]["rest"] for one in both] == [False, True]
    assert both[0]["info"]["split"]["ids_sha256"] == digest

    same = scenes / "a.json"
    code, _, err = run("coco-split", scenes / "masks.json", "--share", 34, "--out", same, "--rest", same)
    assert (code, err.count("\n")) == (2, 1)
    assert "a.json twice" in err

    again = scenes / "again.json"
    assert (
        run("coco-split", scenes / "masks.json", "--list", scenes / "third.ids.txt", "--out", again)[0] == 0
    )
    assert ids(again) == chosen
    code, _, err = run("coco-split", scenes / "masks.json", "--share", 34, "--out", out)
    assert (code, err.count("\n")) == (2, 1)
    assert "third.json already exists" in err


def test_coco_split_needs_a_share_or_a_list(scenes, run):  # noqa: F811
    code, _, err = run("coco-split", scenes / "masks.json", "--out", scenes / "out.json")
    assert code == 2
    assert "--list FILE" in err
    assert not (scenes / "out.json").exists()


def test_cityscapes(tmp_path, run):
    for split in ("train", "val"):
        for kind in ("leftImg8bit", "gtFine"):
            (tmp_path / kind / split / "ulm").mkdir(parents=True)
        pixels = np.full((8, 12), 26003, np.uint16)
        name = tmp_path / "gtFine" / split / "ulm" / "ulm_000000_000019_gtFine_instanceIds.png"
        Image.fromarray(pixels).save(name)
        Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(
            tmp_path / "leftImg8bit" / split / "ulm" / "ulm_000000_000019_leftImg8bit.png"
        )
    code, printed, _ = run("cityscapes", tmp_path, "--out", tmp_path / "annotations")
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "annotations").iterdir()) == [
        "instancesonly_filtered_gtFine_train.json",
        "instancesonly_filtered_gtFine_val.json",
    ]
    assert printed.count("1 images, 0 of them without objects") == 2
    Image.fromarray(np.full((8, 12), 99, np.uint16)).save(name)
    code, _, err = run("cityscapes", tmp_path, "--out", tmp_path / "again", "--split", "val")
    assert code == 2
    assert "ulm_000000_000019_gtFine_instanceIds.png: pixel value 99" in err
    assert not (tmp_path / "again").exists()


def test_ctw1500(tmp_path, run):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "images" / "1001.jpg")
    square = "2,2," * 6 + "20,2," + "20,20," * 6 + "2,20"
    far = ",".join(["90"] * 28)
    (tmp_path / "labels" / "0001001.txt").write_text(f"{square},####a\n{far},####b\n")
    out = tmp_path / "instances_test.json"
    code, printed, _ = run("ctw1500", tmp_path / "images", tmp_path / "labels", "--out", out)
    assert code == 0
    assert "1 objects have no pixel inside their image" in printed
    assert [one["area"] for one in json.loads(out.read_text())["annotations"]] == [324, 0]


def test_folders(scenes, run):  # noqa: F811
    out = scenes / "out.json"
    code, printed, _ = run("folders", scenes / "masks.json", "--folder", scenes / "images", "--out", out)
    assert code == 0
    assert f"Use it with --images {scenes}" in printed
    assert json.loads(out.read_text())["images"][0]["file_name"] == "images/0.png"


@pytest.mark.parametrize("command", ["coco-split", "cityscapes", "ctw1500", "folders"])
def test_help_has_examples(command):
    result = CliRunner().invoke(cli.app, ["data", command, "--help"])
    assert result.exit_code == 0
    assert f"sp-fast data {command}" in result.output


def test_store_is_written_beside_its_file(scenes, run):  # noqa: F811
    pytest.importorskip("pyarrow")
    code, printed, _ = run("store", scenes / "masks.json")
    assert (code, printed) == (0, f"{scenes / 'masks.arrow'}: 3 images, 5 masks\n")
    store = open_store(scenes / "masks.json")
    assert (len(store), store.images_checked) == (3, False)
    code, _, err = run("store", scenes / "masks.json")
    assert (code, err.count("\n")) == (2, 1)
    assert "masks.arrow already exists" in err
    (scenes / "masks.json").write_text("{}")
    code, _, err = run("store", scenes / "masks.json", "--overwrite")
    assert code == 2
    assert "masks.json: images: expected a list" in err
    assert open_store(scenes / "masks.arrow") is not None  # the old one is whole
    code, _, err = run("store", scenes / "masks.arrow", "--overwrite")
    assert code == 2
    assert "not a JSON file" in err


def test_store_checks_the_images_once(scenes, run):  # noqa: F811
    pytest.importorskip("pyarrow")
    command = ("store", scenes / "masks.json", "--images", scenes / "images")
    assert run(*command)[0] == 0
    assert open_store(scenes / "masks.json").images_checked
    Image.new("RGB", (32, 48)).save(scenes / "images" / "0.png")
    code, _, err = run(*command, "--overwrite")
    assert code == 2
    assert "masks.json: 1 error in the data:" in err
    assert "0.png" in err


def test_masks(scenes, run):  # noqa: F811
    masks = json.loads((scenes / "masks.json").read_text())
    for k, one in enumerate(masks["annotations"]):
        one |= {"id": 1, "score": k / 10, "bbox": [0, 0, 99, 99]}
    (scenes / "theirs.json").write_text(json.dumps(masks))
    out = scenes / "out.json"
    arguments = ["masks", scenes / "theirs.json", "--images", scenes / "images", "--top", 1, "--out", out]
    code, printed, err = run(*arguments)
    assert code == 0, err
    assert "3 images, 1 of them without objects" in printed
    assert "Left out: 3 beyond the best 1 of their image." in printed
    assert f"Use it with --images {scenes / 'images'}" in printed
    found = json.loads(out.read_text())["annotations"]
    assert [one["score"] for one in found] == [0.1, 0.4]
    assert [one["bbox"] for one in found] == [[1, 1, 9, 9], [2, 3, 12, 9]]

    code, _, err = run(*arguments)
    assert (code, "out.json already exists" in err) == (2, True)
    (scenes / "theirs.json").write_text(json.dumps(masks["annotations"]))
    code, _, err = run(*arguments[:2], "--out", scenes / "other.json")
    assert (code, err.count("\n")) == (2, 1)
    assert "(--of)" in err
    assert not (scenes / "other.json").exists()
    code, printed, err = run(*arguments[:2], "--of", scenes / "masks.json", "--out", scenes / "other.json")
    assert code == 0, err
    assert "The images' sizes were not checked." in printed
