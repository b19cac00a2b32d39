"""Images, masks, labels and seeds come out of the pipeline together."""

import json
import pickle
from hashlib import sha256

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmdet")

from mmdet.registry import DATASETS, TRANSFORMS
from safetensors.torch import load_file, save_file

import sp_fast.mmdet_plugin.datasets
import sp_fast.mmdet_plugin.transforms  # registers ReadImage
from sp_fast.data.coco import load_coco
from sp_fast.data.images import BrokenImageError
from sp_fast.data.store import in_order, store_path, write_store
from sp_fast.mmdet_plugin import datasets
from sp_fast.mmdet_plugin.datasets import SeedStore
from sp_fast.proposals.store import SEEDS_HASH

LOAD = [{"type": "ReadImage"}, {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True}]
PACK = [{"type": "PackInstances"}]


def build(scenes, *transforms, **options):
    pipeline = [*LOAD, *transforms, *PACK]
    options = {"ann_file": str(scenes / "masks.json"), "images": str(scenes / "images")} | options
    return DATASETS.build({"type": "InstanceDataset", "pipeline": pipeline, "_scope_": "mmdet", **options})


def with_seeds(scenes, *transforms, **options):
    return build(scenes, *transforms, seeds=str(scenes / "masks.seeds.safetensors"), **options)


def assert_aligned(sample):
    """Every mask lies on the grey value that its seed and label tell, and in its box."""
    instances = sample["data_samples"].gt_instances
    assert len(instances.masks) == len(instances.seeds) == len(instances.labels) == len(instances.bboxes)
    assert instances.seeds.dtype == torch.float16  # as stored
    for mask, seed, label, box in zip(
        instances.masks.masks, instances.seeds, instances.labels, instances.bboxes.tensor, strict=True
    ):
        inside = sample["inputs"][:, torch.from_numpy(mask).bool()]
        assert inside.numel() > 0
        assert seed[1] == 40 * (seed[0] + 1)
        assert inside.float().median() == seed[1]
        assert label == seed[0] % 2
        y, x = np.nonzero(mask)
        np.testing.assert_allclose(box, [x.min(), y.min(), x.max() + 1, y.max() + 1], atol=1.5)
    return [int(seed[0]) for seed in instances.seeds]


@pytest.mark.parametrize("direction", ["horizontal", "vertical", "diagonal"])
def test_seeds_follow_their_masks_through_resize_and_flip(scenes, direction):
    dataset = with_seeds(
        scenes,
        {"type": "Resize", "scale": (96, 96), "keep_ratio": True},
        {"type": "RandomFlip", "prob": 1.0, "direction": direction},
    )
    assert dataset.metainfo["classes"] == ("cat", "dog")
    assert [sorted(assert_aligned(dataset[k])) for k in range(3)] == [[0, 1, 2], [], [3, 4]]
    assert dataset[0]["inputs"].shape == (3, 64, 96)


def test_seeds_follow_their_masks_through_crop_and_filter(scenes):
    crop = {"type": "RandomCrop", "crop_size": (20, 24), "allow_negative_crop": True}
    filter_small = {"type": "FilterAnnotations", "min_gt_bbox_wh": (4, 4), "keep_empty": False}
    dataset = with_seeds(scenes, {"type": "KeepSeedsAligned", "transforms": [crop, filter_small]})
    np.random.seed(0)  # noqa: NPY002 (mmcv's transforms draw from it)
    left = {tuple(assert_aligned(dataset[0])) for _ in range(20)}
    assert len(left) > 2
    assert min(map(len, left)) < 3


def test_filter_without_alignment_is_refused(scenes):
    dataset = with_seeds(
        scenes, {"type": "FilterAnnotations", "min_gt_bbox_wh": (11, 1), "keep_empty": False}
    )
    with pytest.raises(ValueError, match=r"0\.png: 2 instances but 3 seeds: .*KeepSeedsAligned"):
        dataset[0]


def extents(sample):
    """The box of each mask."""
    masks = sample["data_samples"].gt_instances.masks.masks
    spans = [(np.nonzero(mask.any(0))[0], np.nonzero(mask.any(1))[0]) for mask in masks]
    return torch.tensor([[x[0], y[0], x[-1] + 1, y[-1] + 1] for x, y in spans])


def test_boxes_are_tight_after_rotations(scenes):
    turn = {"type": "RotateInstances", "prob": 1.0, "level": 3}
    for tight in (False, True):
        dataset = with_seeds(scenes, turn, turn, *([{"type": "TightBoxes"}] if tight else []))
        boxes, masks = [], []
        for seed in range(4):
            np.random.seed(seed)  # noqa: NPY002 (mmcv's transforms draw from it)
            boxes.append(dataset[0]["data_samples"].gt_instances.bboxes.tensor)
            np.random.seed(seed)  # noqa: NPY002
            masks.append(extents(dataset[0]))
        assert torch.equal(torch.cat(boxes), torch.cat(masks)) is tight
    assert sorted(assert_aligned(dataset[2])) == [3, 4]


@pytest.mark.parametrize(("right", "left"), [(1.0, [[1, 0], [], [3]]), (0.0, [[2, 1], [], [4]])])
def test_masks_that_leave_the_image_are_left_out(scenes, right, left):
    shift = {"type": "TranslateX", "prob": 1.0, "min_mag": 0.5, "max_mag": 0.5, "reversal_prob": right}
    dataset = with_seeds(scenes, shift, {"type": "TightBoxes"})
    samples = [dataset[k] for k in range(3)]
    assert [assert_aligned(sample) for sample in samples] == left
    empty = samples[1]["data_samples"].gt_instances
    assert empty.bboxes.tensor.shape == (0, 4)
    assert empty.masks.masks.shape == (0, 32, 48)


def test_crowds_are_packed_apart_with_their_seeds(scenes):
    path = scenes / "masks.json"
    coco = json.loads(path.read_text())
    next(a for a in coco["annotations"] if a["seed_row"] == 1)["iscrowd"] = 1
    path.write_text(json.dumps(coco))
    sample = with_seeds(scenes)[0]
    assert sorted(assert_aligned(sample)) == [0, 2]
    assert sample["data_samples"].ignored_instances.seeds.tolist() == [[1, 80]]


def test_images_without_objects_are_kept_or_filtered(scenes):
    dataset = build(scenes)
    assert len(dataset) == 3
    empty = dataset[1]["data_samples"].gt_instances
    assert empty.masks.masks.shape == (0, 32, 48)
    assert empty.bboxes.tensor.shape == (0, 4)
    assert "seeds" not in empty
    assert len(build(scenes, filter_cfg={"filter_empty_gt": True})) == 2


def test_class_agnostic_and_named_classes(scenes):
    dataset = build(scenes, class_agnostic=True)
    assert dataset.metainfo["classes"] == ("object",)
    assert dataset[0]["data_samples"].gt_instances.labels.tolist() == [0, 0, 0]
    named = build(scenes, metainfo={"classes": ("dog", "bird", "cat")})
    assert named[0]["data_samples"].gt_instances.labels.tolist() == [2, 0, 2]
    with pytest.raises(ValueError, match=r"categories \['dog'\] are not among the classes \['cat'\]"):
        build(scenes, metainfo={"classes": ("cat",)})
    assert build(scenes).metainfo["classes"] == ("cat", "dog")  # nothing is left behind in the class


def test_objects_of_nothing_are_left_out(scenes):
    path = scenes / "masks.json"
    coco = json.loads(path.read_text())
    of = {annotation["seed_row"]: annotation for annotation in coco["annotations"]}
    of[0]["segmentation"] = []
    of[1]["bbox"] = [60, 4, 8, 20]
    path.write_text(json.dumps(coco))
    with pytest.warns(UserWarning, match="have an empty mask"):
        assert assert_aligned(with_seeds(scenes)[0]) == [2]


@pytest.mark.parametrize(
    "foreign",
    [
        lambda x, y, w, h: {"bbox": [x, y, x + w, y + h]},  # xyxy, as some methods' files have it
        lambda x, y, w, h: {"bbox": [x - 1.5, y - 2, w + 4, h + 3], "area": w * h / 2},
        lambda x, y, w, h: {"bbox": [0, 0, 0, 0], "area": 0},
    ],
)
def test_tight_boxes_come_from_the_masks_whatever_the_file_says(scenes, foreign):
    path = scenes / "masks.json"
    expected = with_seeds(scenes)[0]["data_samples"].gt_instances.bboxes.tensor
    coco = json.loads(path.read_text())
    for annotation in coco["annotations"]:
        annotation.update(foreign(*annotation["bbox"]))
    path.write_text(json.dumps(coco))
    sample = with_seeds(scenes, tight_boxes=True)[0]
    assert len(assert_aligned(sample)) == 3
    assert torch.equal(sample["data_samples"].gt_instances.bboxes.tensor, expected)


def test_annotation_file_without_images_is_refused(scenes):
    path = scenes / "masks.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"images": [], "annotations": []}))
    with pytest.raises(ValueError, match=r"masks\.json: 'images' is empty"):
        build(scenes)


def test_image_of_another_size_is_refused(scenes):
    Image.new("RGB", (32, 48)).save(scenes / "images" / "0.png")
    with pytest.raises(ValueError, match=r"0\.png is 48 x 32 .* its annotations say 32 x 48"):
        build(scenes)[0]


def test_images_are_bgr(scenes):
    Image.new("RGB", (48, 32), (1, 2, 3)).save(scenes / "images" / "1.png")
    assert build(scenes)[1]["inputs"][:, 0, 0].tolist() == [3, 2, 1]


def test_data_set_travels_to_a_worker(scenes):
    dataset = with_seeds(scenes)
    dataset[0]
    assert assert_aligned(pickle.loads(pickle.dumps(dataset))[2]) == [4, 3]


def change_seeds(change):
    def apply(scenes):
        path = scenes / "masks.json"
        coco = json.loads(path.read_text())
        change(coco["annotations"][0])
        path.write_text(json.dumps(coco))

    return apply


def name_seeds(sha256):
    def apply(scenes):
        path = scenes / "masks.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "info": {SEEDS_HASH: sha256}}))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda scenes: (scenes / "masks.seeds.safetensors").write_bytes(b"x" * 40), "not a store of seeds"),
        (lambda scenes: (scenes / "masks.seeds.safetensors").unlink(), "no such store of seeds"),
        (change_seeds(lambda annotation: annotation.pop("seed_row")), "annotation 5 has seed_row None"),
        (change_seeds(lambda annotation: annotation.update(seed_row=5)), "seed_row 5, expected a row of"),
        (name_seeds("of others"), "belongs to other masks .* expected seeds of SHA-256 of others, got None"),
    ],
)
def test_bad_seeds_are_told(scenes, damage, message):
    damage(scenes)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        with_seeds(scenes)


def test_a_flipped_bit_in_the_seeds_is_found(scenes, monkeypatch):
    whole = sha256(load_file(scenes / "masks.seeds.safetensors")["seeds"].numpy().tobytes()).hexdigest()
    path = scenes / "named.safetensors"
    save_file(load_file(scenes / "masks.seeds.safetensors"), path, metadata={"seeds_sha256": whole})
    SeedStore(path).check_whole()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"named.safetensors is damaged: expected seeds of SHA-256 {whole}"):
        SeedStore(path).check_whole()
    monkeypatch.setattr(datasets, "CHECKED_BYTES", 10)
    SeedStore(path).check_whole()


def break_image(scenes, name="0.png"):
    path = scenes / "images" / name
    path.write_bytes(path.read_bytes()[:60])


def enlarge(scenes, count=40):
    """More images without objects, so that one broken image is less than 5 %."""
    path = scenes / "masks.json"
    coco = json.loads(path.read_text())
    for k in range(count):
        Image.new("RGB", (48, 32)).save(scenes / "images" / f"more{k}.png")
        coco["images"].append({"id": 100 + k, "file_name": f"more{k}.png", "height": 32, "width": 48})
    path.write_text(json.dumps(coco))


def test_broken_image_is_named_once_and_another_one_taken(scenes, caplog, monkeypatch):
    lines = []
    monkeypatch.setattr(
        sp_fast.mmdet_plugin.datasets, "print_log", lambda message, **_: lines.append(message)
    )
    enlarge(scenes)
    break_image(scenes)
    dataset = build(scenes)
    for _ in range(3):
        assert dataset[0]["data_samples"].img_id != 10
    assert len(lines) == 1
    assert "0.png" in lines[0]


def test_too_many_broken_images_stop_training(scenes):
    break_image(scenes)
    with pytest.raises(ValueError, match=r"1 of 3 images could not be read: .*More than 5%"):
        build(scenes)[0]


@pytest.mark.parametrize("cache", [None, "ram"])
def test_image_too_narrow_to_be_resized_is_named(scenes, cache):
    Image.new("RGB", (5000, 1)).save(scenes / "images" / "thin.png")
    coco = json.loads((scenes / "masks.json").read_text())
    coco["images"].insert(0, {"id": 99, "file_name": "thin.png", "height": 1, "width": 5000})
    (scenes / "masks.json").write_text(json.dumps(coco))
    small = {"type": "Resize", "scale": (64, 64), "keep_ratio": True}
    with pytest.raises(BrokenImageError, match=r"thin\.png: too narrow to be resized"):
        build(scenes, small, cache=cache, test_mode=True)[0]
    training = build(scenes, small, cache=cache)
    training.fill_cache()
    with pytest.raises(ValueError, match=r"thin\.png \(too narrow to be resized\)"):
        training[0]


def test_broken_image_stops_evaluation(scenes):
    enlarge(scenes)
    break_image(scenes)
    with pytest.raises(BrokenImageError, match=r"0\.png"):
        build(scenes, test_mode=True)[0]


def test_image_folder_needs_no_annotations(scenes):
    pipeline = [{"type": "ReadImage"}, {"type": "Resize", "scale": (24, 16)}, {"type": "PackInstances"}]
    dataset = DATASETS.build(
        {
            "type": "ImageFolderDataset",
            "images": str(scenes / "images"),
            "pipeline": pipeline,
            "_scope_": "mmdet",
        }
    )
    assert len(dataset) == 3
    sample = dataset[2]
    assert sample["inputs"].shape == (3, 16, 24)
    assert sample["data_samples"].img_path.endswith("2.png")
    assert (dataset.get_data_info(0)["height"], dataset.get_data_info(0)["width"]) == (32, 48)


def test_transforms_are_registered():
    assert {"ReadImage", "PackInstances", "KeepSeedsAligned"} <= set(TRANSFORMS.module_dict)


def with_store(scenes):
    """Writes the store of the folder's masks.json, and a copy of the JSON file that has none; its path."""
    pytest.importorskip("pyarrow")
    path = scenes / "masks.json"
    (scenes / "plain.json").write_bytes(path.read_bytes())
    coco = load_coco(path)
    write_store(store_path(path), path, coco, coco["images"], in_order(coco))
    return str(scenes / "plain.json")


def infos(dataset):
    """What a data set gives for each image, with the seeds as lists."""
    found = [dataset.get_data_info(k) for k in range(len(dataset))]
    return [{**one, "gt_seeds": one["gt_seeds"].tolist()} if "gt_seeds" in one else one for one in found]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tight_boxes": True},
        {"class_agnostic": True},
        {"metainfo": {"classes": ("dog", "bird", "cat")}},
        {"exif": "apply"},
        {"filter_cfg": {"filter_empty_gt": True, "min_size": 32}},
        {"filter_cfg": {"filter_empty_gt": True}, "tight_boxes": True, "indices": 1},
        {"indices": [2, 0]},
        {"indices": -2},
        {"lazy_init": True},
        {"seeds": None},
    ],
)
@pytest.mark.parametrize("name", ["masks.json", "masks.arrow"])
def test_a_store_gives_what_its_json_file_gives(scenes, options, name):
    coco = json.loads((scenes / "masks.json").read_text())
    for one in coco["annotations"][:2]:  # those of the last image: beyond it, and loose
        one["bbox"] = [48, 4, 5, 5] if one["id"] == 5 else [0.5, 0, 47, 40]
    coco["annotations"][-1]["iscrowd"] = 1
    coco["info"] = {"exif": "ignore"}
    (scenes / "masks.json").write_text(json.dumps(coco))
    plain = with_store(scenes)
    options = {"seeds": str(scenes / "masks.seeds.safetensors")} | options
    expected = build(scenes, ann_file=plain, **options)
    dataset = build(scenes, ann_file=str(scenes / name), **options)
    assert infos(dataset) == infos(expected)
    assert dataset.metainfo == expected.metainfo
    assert np.array_equal(dataset.sizes(), np.reshape(expected.sizes(), (-1, 2)))
    assert (expected.store, dataset.store.path.name) == (None, "masks.arrow")
    assert all(isinstance(row, int) for row in dataset.data_list)  # nothing but the rows is kept
    assert_same_sample(dataset[0], expected[0])


def assert_same_sample(one, other):
    assert torch.equal(one["inputs"], other["inputs"])
    ours, theirs = (sample["data_samples"].gt_instances for sample in (one, other))
    assert np.array_equal(ours.masks.masks, theirs.masks.masks)
    assert torch.equal(ours.bboxes.tensor, theirs.bboxes.tensor)


def test_a_store_serves_workers_subsets_and_copies(scenes):
    plain = with_store(scenes)
    dataset, expected = with_seeds(scenes), with_seeds(scenes, ann_file=plain)
    assert dataset.store is not None
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    for one, other in zip(loader, (expected[k] for k in range(3)), strict=True):
        assert_same_sample(one, other)
    assert infos(pickle.loads(pickle.dumps(dataset))) == infos(expected)
    assert infos(dataset.get_subset([2])) == infos(expected.get_subset([2]))
    assert infos(dataset) == infos(expected)


def test_a_store_has_the_errors_of_its_json_file(scenes):
    change_seeds(lambda annotation: annotation.update(seed_row=5))(scenes)
    with_store(scenes)
    with pytest.raises(ValueError, match=r"annotation 5 has seed_row 5, expected a row of .* which has 5"):
        with_seeds(scenes)
    (scenes / "images" / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 images are not in .*images: 1\.png"):
        build(scenes)


def test_a_store_of_another_file_is_named(scenes):
    with_store(scenes)
    (scenes / "masks.json").write_text((scenes / "masks.json").read_text().replace('"cat"', '"cow"'))
    with pytest.warns(UserWarning, match="made from another masks.json"):
        assert build(scenes).metainfo["classes"] == ("cow", "dog")


def turn(scenes, orientation):
    """Give the first image an EXIF orientation; its labels stay in stored pixels."""
    path = scenes / "images" / "0.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as image:
        image.save(path, exif=exif)


def tell(scenes, exif):
    coco = json.loads((scenes / "masks.json").read_text())
    (scenes / "masks.json").write_text(json.dumps(coco | {"info": {"exif": exif}}))


@pytest.mark.parametrize("orientation", [2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("how", ["option", "file"])
def test_labels_in_stored_pixels(scenes, orientation, how):
    turn(scenes, orientation)
    if how == "file":
        tell(scenes, "ignore")
    dataset = with_seeds(scenes, exif="ignore" if how == "option" else "auto")
    assert assert_aligned(dataset[0]) == [2, 1, 0]


@pytest.fixture
def said(monkeypatch):
    """The lines that ReadImage logs."""
    lines = []
    monkeypatch.setattr(
        "sp_fast.mmdet_plugin.transforms.print_log", lambda text, **options: lines.append(text)
    )
    return lines


@pytest.mark.parametrize("exif", ["auto", "apply", "ignore"])
def test_labels_that_fit_one_way_need_no_option(scenes, said, exif):
    turn(scenes, 6)
    dataset = with_seeds(scenes, exif=exif)
    for _ in range(2):
        assert assert_aligned(dataset[0]) == [2, 1, 0]
    assert len(said) == int(exif != "ignore")
    assert all("0.png: the labels fit only with EXIF orientation 6 ignored" in line for line in said)


@pytest.mark.parametrize("exif", ["auto", "apply", "ignore"])
def test_a_guess_is_said_once(scenes, exif, said):
    stored = build(scenes)[0]["inputs"]
    turn(scenes, 3)
    dataset = build(scenes, exif=exif)
    for _ in range(2):
        read = dataset[0]["inputs"]
        assert torch.equal(read if exif == "ignore" else read.flip(1, 2), stored)
    assert len(said) == int(exif == "auto")
    with pytest.raises(ValueError, match="exif: expected 'auto' or 'apply' or 'ignore', got 'maybe'"):
        build(scenes, exif="maybe")


def test_the_option_wins_over_the_file(scenes):
    tell(scenes, "ignore")
    assert build(scenes, exif="apply").exif == "apply"
    assert build(scenes).exif == "ignore"


def test_image_folder_without_exif(scenes):
    turn(scenes, 6)
    options = {
        "images": str(scenes / "images"),
        "pipeline": [{"type": "ReadImage"}, *PACK],
        "_scope_": "mmdet",
    }
    sizes = {
        exif: DATASETS.build({"type": "ImageFolderDataset", "exif": exif, **options})
        for exif in ("auto", "ignore")
    }
    assert [sizes[exif][0]["inputs"].shape[1:] for exif in sizes] == [(48, 32), (32, 48)]
    assert [sizes[exif].sizes()[0] for exif in sizes] == [(48, 32), (32, 48)]
