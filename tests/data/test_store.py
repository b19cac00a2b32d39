"""The store gives what `load_coco` gives, and is used only for the very file that it was made from."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("pyarrow")

import pyarrow as pa

from sp_fast.data import store as module
from sp_fast.data.check import errors_before_training
from sp_fast.data.coco import check_files, load_coco, save_coco
from sp_fast.data.store import in_order, open_store, store_path, write_store
from tests.data.fixtures import encode


def box_mask(x, y, w, h):
    mask = np.zeros((20, 30), bool)
    mask[y : y + h, x : x + w] = True
    return mask


def mixed(count=3, name=str):
    """Images with three masks each of every kind, without objects, and with crowds; ids made by `name`."""
    coco = {"info": {"exif": "ignore"}, "images": [], "annotations": []}
    coco["categories"] = [{"id": name(7), "name": "dog"}, {"id": name(2), "name": "cat"}]
    for k in range(count):
        image = {"id": name(count - k), "file_name": f"{k}.png", "height": 20, "width": 30}
        coco["images"].append(image)
        kinds = [
            {"segmentation": encode(box_mask(2 + k % 5, 3, 9, 8)), "seed_row": k, "score": 0.5},
            {"segmentation": {"size": [20, 30], "counts": [40 + k % 400, 60, 500 - k % 400]}, "area": 60.5},
            {"segmentation": [[1, 1, 9.5, 1, 9.5, 8, 1, 8]], "bbox": [1.5, 1, 8, 7], "iscrowd": 1},
        ]
        for j, kind in enumerate(kinds if k % 3 != 1 else []):
            ids = {"id": name(10 * k + j), "image_id": image["id"], "category_id": name((7, 2)[j % 2])}
            coco["annotations"].insert(0, ids | kind)  # in another order than the images
    return coco


def written(coco, folder, **options):
    """masks.json and its store; their paths."""
    path = folder / "masks.json"
    save_coco(coco, path)
    loaded = load_coco(path)
    write_store(store_path(path), path, loaded, loaded["images"], in_order(loaded), **options)
    return path, store_path(path)


@pytest.mark.parametrize("tight_boxes", [False, True])
@pytest.mark.parametrize("name", [int, str])
def test_entries_equal_those_of_load_coco(tight_boxes, name, tmp_path):
    path, _ = written(mixed(name=name), tmp_path)
    coco = load_coco(path, tight_boxes=tight_boxes)
    store = open_store(path)
    assert (store.categories, store.info, len(store)) == (coco["categories"], coco["info"], 3)
    for row, image in enumerate(coco["images"]):
        entry, annotations = store.entry(row, tight_boxes=tight_boxes)
        expected = [one for one in coco["annotations"] if one["image_id"] == image["id"]]
        for one in expected:
            one.pop("score", None)
            one.setdefault("seed_row", None)
        assert entry == image
        assert annotations == expected


def test_columns_of_several_batches(tmp_path):
    done = []
    path, _ = written(mixed(600), tmp_path, progress=done.append)
    store = open_store(path)
    assert done == [256, 512, 600]
    assert store.file_names() == [f"{k}.png" for k in range(600)]
    assert [store.entry(row)[0]["id"] for row in (0, 255, 256, 511, 512, 599)] == [
        str(600 - row) for row in (0, 255, 256, 511, 512, 599)
    ]
    assert store.sizes().tolist() == [[20, 30]] * 600
    assert store.objects().tolist() == [0 if k % 3 == 1 else 3 for k in range(600)]
    assert not store.seed_rows_within(600)  # some have none
    part = store.coco(300)
    assert len(part["images"]) == 600
    assert 200 < len(part["annotations"]) <= 300


def test_objects_count_only_boxes_that_reach_into_the_image(tmp_path):
    coco = mixed(1)
    coco["annotations"][0]["bbox"] = [30, 0, 5, 5]
    coco["annotations"][1]["bbox"] = [-4, 0, 4, 5]
    store = open_store(written(coco, tmp_path)[0])
    assert store.objects().tolist() == [1]
    assert store.objects(tight_boxes=True).tolist() == [3]


def test_seed_rows(tmp_path):
    coco = mixed(1)
    for row, one in enumerate(coco["annotations"]):
        one["seed_row"] = row
    store = open_store(written(coco, tmp_path)[0])
    assert store.seed_rows_within(3)
    assert not store.seed_rows_within(2)


def test_a_copy_with_another_time_stamp_is_the_same_file(tmp_path):
    path, _ = written(mixed(), tmp_path)
    for other in (path, store_path(path)):
        (tmp_path / "copy").mkdir(exist_ok=True)
        shutil.copyfile(other, tmp_path / "copy" / other.name)
    os.utime(tmp_path / "copy" / path.name, ns=(5, 5))
    assert open_store(tmp_path / "copy" / path.name) is not None


@pytest.mark.parametrize("old", [False, True])
def test_an_edited_file_is_read_instead_of_its_store(old, tmp_path):
    path, beside = written(mixed(), tmp_path)
    if old:  # the time stamp decides: the store was made long after the file
        os.utime(path, ns=(5, 5))
        beside.unlink()
        loaded = load_coco(path)
        write_store(beside, path, loaded, loaded["images"], in_order(loaded))
    text = path.read_text()
    path.write_text(text.replace('"cat"', '"cow"'))  # of the same size
    if not old:  # within one tick
        os.utime(path, ns=(beside.stat().st_mtime_ns,) * 2)
    with pytest.warns(UserWarning, match=r"masks\.arrow: made from another masks\.json; .*is read instead"):
        assert open_store(path) is None
    path.write_text(text + " ")
    with pytest.warns(UserWarning, match="made from another"):
        assert open_store(path) is None


def test_a_file_with_its_time_stamp_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "masks.json"
    save_coco(mixed(), path)
    os.utime(path, ns=(5, 5))
    loaded = load_coco(path)
    write_store(store_path(path), path, loaded, loaded["images"], in_order(loaded))
    monkeypatch.setattr(module, "sha256", lambda path: pytest.fail("reads the file"))
    assert open_store(path) is not None


def foreign(path):
    schema = pa.schema({"a": pa.int64()})
    with pa.ipc.new_file(str(path), schema) as out:
        out.write_batch(pa.record_batch([[1]], schema=schema))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-30]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"x" * 400),
        foreign,
    ],
)
def test_a_file_that_is_not_a_store_is_named(damage, tmp_path):
    path, beside = written(mixed(), tmp_path)
    damage(beside)
    with pytest.warns(UserWarning, match=r"masks\.arrow: not a store .*masks\.json is read instead"):
        assert open_store(path) is None
    with pytest.raises(ValueError, match=r"masks\.arrow: not a store"):
        open_store(beside)


def test_a_flipped_bit_is_found_in_its_batch(tmp_path):
    _, beside = written(mixed(300), tmp_path)
    counts = encode(box_mask(2 + 299 % 5, 3, 9, 8))["counts"].encode()
    content = bytearray(beside.read_bytes())
    content[content.rindex(counts)] ^= 1
    beside.write_bytes(content)
    store = open_store(beside)
    store.entry(255)
    with pytest.raises(ValueError, match=r"masks\.arrow: damaged \(checksum of images 256 to 299\); make it"):
        store.entry(256)


def test_without_pyarrow(tmp_path, monkeypatch):
    path, beside = written(mixed(), tmp_path)
    monkeypatch.setattr(module, "can_store", lambda: False)
    with pytest.warns(UserWarning, match=r"needs pyarrow; pip install .*is read instead"):
        assert open_store(path) is None
    with pytest.raises(ModuleNotFoundError, match="needs pyarrow"):
        open_store(beside)
    assert open_store(tmp_path / "other.json") is None
    with pytest.raises(FileNotFoundError, match=r"no such store of masks: .*other\.arrow"):
        open_store(tmp_path / "other.arrow")


def test_another_process_reads_the_same_store_or_none(tmp_path):
    path, _ = written(mixed(), tmp_path)
    store = open_store(path)
    packed = pickle.dumps(store)
    assert pickle.loads(packed).entry(2) == store.entry(2)
    before = store.entry(0)
    written(mixed(2), tmp_path)
    assert store.entry(0) == before  # the old file, as long as it is open
    with pytest.raises(ValueError, match=r"masks\.arrow: replaced while it was in use"):
        pickle.loads(packed)


def out_of_order(coco):
    coco["annotations"].reverse()


def beyond_64_bits(coco):
    coco["annotations"][2]["id"] = 2**70


def not_utf8(coco):
    coco["images"][1]["file_name"] = os.fsdecode(b"\xff.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (out_of_order, "expected the annotations in the order"),
        (beyond_64_bits, r"masks\.arrow: cannot be written"),
        (not_utf8, r"masks\.arrow: cannot be written \(.*udcff"),
    ],
)
def test_nothing_is_left_of_a_store_that_cannot_be_written(change, message, tmp_path):
    path = tmp_path / "masks.json"
    save_coco(mixed(name=int), path)
    coco = load_coco(path)
    coco["annotations"] = in_order(coco)
    change(coco)
    with pytest.raises(ValueError, match=message):
        write_store(store_path(path), path, coco, coco["images"], coco["annotations"])
    assert os.listdir(tmp_path) == ["masks.json"]


def images_of(coco, folder):
    for image in coco["images"]:
        Image.new("RGB", (30, 20)).save(folder / image["file_name"])


def test_checks_before_training_look_at_the_images_unless_they_were_read(tmp_path):
    coco = mixed()
    images_of(coco, tmp_path)
    errors_before_training(written(coco, tmp_path)[0], tmp_path)
    Image.new("RGB", (30, 21)).save(tmp_path / "0.png")
    path, beside = written(coco, tmp_path)
    for name in (path, beside):
        with pytest.raises(ValueError, match=r"1 error in the data:(?s:.*)0\.png(?s:.*)21 x 30"):
            errors_before_training(name, tmp_path)
    path, _ = written(coco, tmp_path, images_checked=True)
    errors_before_training(path, tmp_path)
    (tmp_path / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images are not in .*: 2\.png"):
        errors_before_training(path, tmp_path)


def test_files_in_nested_folders(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b.png").mkdir()
    for name in ("0.png", "a/1.png"):
        (tmp_path / name).touch()
    (tmp_path / "link.png").symlink_to("0.png")
    names = ["0.png", "a/1.png", "a/../0.png", "./a//1.png", "link.png"]
    check_files(Path("masks.json"), names, tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"3 of 8 images are not in .*: b\.png, a/0\.png, none/0\.png$"
    ):
        check_files(Path("masks.json"), [*names, "b.png", "a/0.png", "none/0.png"], tmp_path)


def test_polygons_are_kept_as_text(tmp_path):
    path, beside = written(mixed(1), tmp_path)
    with pa.memory_map(str(beside)) as file:
        masks = pa.ipc.open_file(file).read_all().to_pylist()[0]["masks"]
    assert [one["counts"] is None for one in masks].count(True) == 2
    assert json.loads(masks[0]["segmentation"]) == load_coco(path)["annotations"][0]["segmentation"]
