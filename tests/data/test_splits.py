"""Parts of COCO: the recipes and the lists that others use."""

import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from sp_fast.data.splits import draw, ids_text, part, read_list, write_ids


def coco_of(count: int) -> dict:
    """Ids fall while positions rise; every fifth image is empty, every seventh has a crowd only."""
    images = [
        {"id": 10 * (count - k), "file_name": f"{k:04d}.jpg", "height": 8, "width": 8} for k in range(count)
    ]
    annotations = [
        {"id": k + 1, "image_id": image["id"], "category_id": 1, "iscrowd": int(k % 7 == 0)}
        for k, image in enumerate(images)
        if k % 5
    ]
    categories = [{"id": 1, "name": "thing"}]
    return {
        "info": {},
        "licenses": [],
        "images": images,
        "annotations": annotations,
        "categories": categories,
    }


COCO = coco_of(200)
IDS = [image["id"] for image in COCO["images"]]


def test_a_hash_draw_is_the_same_everywhere_and_nested():
    ten = draw(COCO["images"], 10, seed=1)
    assert hashlib.sha256(ids_text(ten).encode()).hexdigest() == (
        "da6398f34aaf69500f778cb26958b23c215671e751f30428a0d864e744c27067"
    )
    assert ten == draw(COCO["images"][::-1], 10, seed=1)
    assert len(ten) == 20
    assert draw(COCO["images"], 5, seed=1) < ten
    assert draw(COCO["images"], 10, seed=2) != ten
    assert draw(COCO["images"], 100, seed=1) == set(IDS)


@pytest.mark.parametrize(("share", "fold"), [(10, 1), (5, 3), (2.5, 1)])
def test_the_mmdet_recipe_gives_the_files_of_its_tool(share, fold, tmp_path):
    mmdet = pytest.importorskip("mmdet")
    tool = Path(mmdet.__file__).parent / ".mim" / "tools" / "misc" / "split_coco.py"
    spec = importlib.util.spec_from_file_location("split_coco", tool)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(COCO))
    module.split_coco(f"{tmp_path}/", str(tmp_path / "out"), share, fold)
    labeled = tmp_path / "out" / f"instances_train2017.{fold}@{share}.json"
    theirs = json.loads(labeled.read_text())
    chosen = draw(COCO["images"], share, fold, "mmdet")
    ours = part(COCO, chosen, {})
    assert (ours["images"], ours["annotations"]) == (theirs["images"], theirs["annotations"])
    assert read_list(labeled, COCO) == chosen


def test_the_mmdet_recipe_draws_with_replacement():
    assert len(draw(coco_of(2000)["images"], 50, 1, "mmdet")) < 1000


def test_the_detreg_recipe():
    expected = np.random.default_rng(42).choice(sorted(IDS), round(200 * 0.1), replace=False)
    assert draw(COCO["images"], 10, 42, "detreg") == set(expected.tolist())


def test_both_readings_of_a_supervision_list(tmp_path):
    path = tmp_path / "COCO_supervision.txt"
    path.write_text(json.dumps({"5.0": {"1": [0]}, "10.0": {"1": [0, 1, 3], "2": [5]}}))
    assert read_list(path, COCO, share=10) == {IDS[0], IDS[1], IDS[3]}
    assert read_list(path, COCO, share=10, seed=2) == {IDS[5]}
    # From the last image to the first, that is by id: 196 has only a crowd, 195 nothing.
    usable = [IDS[k] for k in range(199, -1, -1) if k % 5 and k % 7]
    expected = {usable[0], usable[1], usable[3]}
    assert read_list(path, COCO, share=10, positions="detectron2") == expected


@pytest.mark.parametrize("form", ["json ids", "json names", "lines", "lines of names", "one line", "coco"])
def test_lists_of_images(form, tmp_path):
    chosen = IDS[3:6] if form != "one line" else IDS[3:4]
    names = [image["file_name"] for image in COCO["images"] if image["id"] in chosen]
    text = {
        "json ids": json.dumps(chosen),
        "json names": json.dumps(names),
        "lines": ids_text(chosen),
        "lines of names": "\n".join(names) + "\n\n",
        "one line": ids_text(chosen),
        "coco": json.dumps({"images": [{"id": one} for one in chosen], "annotations": []}),
    }[form]
    (tmp_path / "list").write_text(text)
    assert read_list(tmp_path / "list", COCO) == set(chosen)


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("12345\n", {}, r"list: 1 of 1 entries are no image of the annotation file: 12345"),
        ("", {}, "list: the list is empty"),
        ("3.5", {}, r"list: expected ids, file names, positions"),
        ('{"5.0": {"1": [0]}}', {}, r"share: expected one of the percentages of .*list: 5\.0"),
        ('{"5.0": {"1": [0]}}', {"share": 7}, r"share: .*list has 5\.0, got 7"),
        ('{"5.0": {"1": [0]}}', {"share": 5, "seed": 3}, "seed: .*list has 1 for 5.0 %, got 3"),
        ('{"5.0": {"1": [200]}}', {"share": 5}, "positions 200 to 200, but there are 200 images"),
        ('{"5.0": {"1": ["a"]}}', {"share": 5}, "list: expected a list of positions"),
        ('{"5.0": {"1": 7}}', {"share": 5}, "list: expected a list of positions, got 7"),
        ('{"images": [7]}', {}, "list: expected a COCO-format file, but its 'images' lack ids"),
        ('{"5.0": [0]}', {"share": 5}, "list: expected {percentage"),
        ('{"who": [0]}', {"share": 5}, "list: expected {percentage"),
        ("[]", {"positions": "else"}, "positions: expected one of file, detectron2"),
    ],
)
def test_bad_lists_are_refused(text, options, message, tmp_path):
    (tmp_path / "list").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_list(tmp_path / "list", COCO, **options)


def test_bad_draws_are_refused(tmp_path):
    for share in (0, -1, 101):
        with pytest.raises(ValueError, match="share: expected a percentage"):
            draw(COCO["images"], share, 1)
    with pytest.raises(ValueError, match=r"0\.1 % of 200 images is none"):
        draw(COCO["images"], 0.1, 1)
    with pytest.raises(ValueError, match="recipe: expected one of"):
        draw(COCO["images"], 5, 1, "other")
    with pytest.raises(FileNotFoundError, match="no such list of images"):
        read_list(tmp_path / "none", COCO)


def test_the_published_list_has_the_known_sizes(data_dir):
    path = data_dir("COCO_supervision.txt")
    lists = json.loads(path.read_text())
    assert [len(lists[share]["1"]) for share in ("5.0", "10.0")] == [5863, 11726]
    assert hashlib.sha256(path.read_bytes()).hexdigest() == (
        "3dc88c1fee5676d3da717a4a2a357e5e590d9bd7c94e2feadc60d43d70c4401d"
    )
    full = {"images": [{"id": k, "file_name": f"{k}.jpg"} for k in range(118_287)], "annotations": []}
    assert len(read_list(path, full, share=10)) == 11726


def test_the_ids_and_their_hash(tmp_path):
    digest = write_ids({30, 4, 200}, tmp_path / "ids.txt")
    assert (tmp_path / "ids.txt").read_text() == "4\n30\n200\n"
    assert digest == hashlib.sha256(b"4\n30\n200\n").hexdigest()
