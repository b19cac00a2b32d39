"""The command: errors that say how to mend them, the pack, and proposals of resized copies."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from rich.console import Console
from typer.testing import CliRunner

pytest.importorskip("mmdet")

from sp_fast.cli import app
from sp_fast.data.coco import load_coco
from sp_fast.data.images import image_size, list_images
from sp_fast.study.memory import canvas_size, load_images
from sp_fast.study.proposals import at_original_size, make_proposals
from sp_fast.study.source import PACK, annotated, open_data
from sp_fast.study.training import Budget, OutOfTimeError
from tests.study.study_data import make_data, write_config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("command") / "data", size=96)


def fails(arguments, kind, match):
    result = CliRunner().invoke(app, ["study", *map(str, arguments)])
    assert isinstance(result.exception, kind), result.output
    assert match in str(result.exception)


def test_errors_name_the_option_and_the_way_out(data, tmp_path):
    ready = ["mini-coco", data, "--out", tmp_path / "out", "--device", "cpu"]
    fails([*ready, "--variants", "cosine,none,cos"], ValueError, "--variants: expected some of none, labels")
    fails([*ready, "--seeds", "a"], ValueError, "--seeds: expected whole numbers with commas")
    fails([*ready, "--size", "100"], ValueError, "--size: expected a multiple of 32")
    fails([*ready, "--images", "0"], ValueError, "--images: expected at least 1, got 0")
    fails([*ready, "--minutes", "0"], ValueError, "--minutes: expected a number above 0")
    fails([*ready, "--backbone", "vgg"], ValueError, "--backbone: expected resnet50, mobilenet_v2")
    wrong = ["mini-coco", data / "coco_mini", "--out", tmp_path / "out"]
    fails(wrong, FileNotFoundError, "DATA: expected the train images in")
    fails([*ready, "--variants", "labels", "--size", "64"], FileNotFoundError, "weights in")


def test_help_has_examples():
    for name in ("mini-coco", "pack"):
        shown = CliRunner().invoke(app, ["study", name, "--help"])
        assert shown.exit_code == 0
        assert f"sp-fast study {name}" in shown.output


@pytest.fixture(scope="module")
def packed(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pack")
    config = write_config(folder / "narrow.py")
    shown = CliRunner().invoke(
        app,
        [
            "study",
            "pack",
            str(data),
            "--out",
            str(folder / "pack"),
            "--size",
            "64",
            "--backbone",
            str(config),
        ],
    )
    assert shown.exit_code == 0, shown.output
    assert "MiB" in shown.output
    return folder / "pack"


def test_pack_has_all_images_small_and_the_annotations_as_they_are(data, packed):
    source, pack = open_data(data, 96), open_data(packed, 64)
    assert source.packed_size is None
    assert pack.packed_size == 64
    for split in ("train", "unlabeled", "bsds500", "val"):
        originals, copies = list_images(source.images(split)), list_images(pack.images(split))
        assert [path.name for path in originals] == [path.name for path in copies]
        for original, path in zip(originals, copies, strict=True):
            assert image_size(path) == canvas_size(*image_size(original), 64)
    assert load_coco(pack.annotations("val")) == load_coco(source.annotations("val"))
    # The study sees the same pixels: those of the pack are not resized again.
    coco = annotated(pack, "train", 2)
    shapes = [(image["height"], image["width"]) for image in coco["images"]]
    of = [
        load_images([one.images("train") / image["file_name"] for image in coco["images"]], 64, shapes)
        for one in (source, pack)
    ]
    assert of[0].sizes.tolist() == of[1].sizes.tolist()
    assert (of[0].pixels == of[1].pixels).all()  # PNG


def test_pack_of_smaller_images_is_refused(data, packed, tmp_path):
    with pytest.raises(ValueError, match=r"--size: expected at most 64, the size .* got 96; make a pack"):
        open_data(packed, 96)
    fails(["pack", data, "--out", packed], FileExistsError, "holds something already")
    fails(
        ["pack", data, "--out", tmp_path / "p", "--quality", "0"], ValueError, "--quality: expected 1 to 95"
    )
    assert json.loads((packed / PACK).read_text())["size"] == 64


def test_proposals_of_resized_copies_are_scored_on_the_originals():
    small = np.zeros((4, 6), np.uint8)
    small[1:3, 2:5] = 1
    rle = coco_mask.encode(np.asfortranarray(small))
    image = {"id": 1, "file_name": "a.png", "height": 4, "width": 6}
    one = {"id": 1, "image_id": 1, "category_id": 1}
    one["segmentation"] = {"size": [4, 6], "counts": rle["counts"].decode()}
    proposals = {"images": [image], "annotations": [one], "categories": [{"id": 1, "name": "object"}]}
    original = {"images": [{"id": 9, "file_name": "a.png", "height": 8, "width": 12}]}
    scaled = at_original_size(proposals, original)
    mask = coco_mask.decode(scaled["annotations"][0]["segmentation"])
    assert (mask == small.repeat(2, 0).repeat(2, 1)).all()
    assert (scaled["images"][0]["height"], scaled["images"][0]["width"]) == (8, 12)
    assert at_original_size(proposals, {"images": []}) == {
        "images": [],
        "annotations": [],
        "categories": proposals["categories"],
    }


def test_proposals_of_a_pack_go_on_when_the_time_was_over(packed, tmp_path):
    class Short(Budget):
        left = 0.0

    def make(budget):
        return make_proposals(
            open_data(packed, 64),
            {"backbone": "random"},
            "paper",
            tmp_path,
            size=64,
            device=torch.device("cpu"),
            workers=1,
            budget=budget,
            console=Console(file=io.StringIO()),
        )

    with pytest.raises(OutOfTimeError):
        make(Short())
    assert list(tmp_path.glob("train.json.partial/*"))
    quality = make(Budget())
    assert quality["train"]["images"] == 12
    assert quality["val"]["images"] == 4
    assert 0 < quality["train"]["by_size"]["all"]["mean_best_iou"] < 1
    assert quality["train"]["by_size"]["all"]["objects"] > 12
    assert sorted(path.name for path in tmp_path.glob("*.json")) == [
        "bsds500.json",
        "quality.json",
        "train.json",
        "unlabeled.json",
        "val.json",
    ]
    assert make(Short()) == quality  # made once


def test_images_of_a_split_are_read_as_they_are(data):
    path = next(iter(list_images(data / "bsds500")))
    images = load_images([path], 96, [None], workers=1)
    assert (images.pixels[0].permute(1, 2, 0).numpy() == np.asarray(Image.open(path))).all()
