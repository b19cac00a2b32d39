"""Images and masks in memory: what comes out is what reading would have given, to the bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmdet")

import sp_fast.models  # noqa: F401

# isort: split
from mmdet.registry import DATASETS

from sp_fast.mmdet_plugin import cache
from sp_fast.mmdet_plugin.cache import CacheError
from sp_fast.mmdet_plugin.samplers import SeededIndex
from tests.mmdet_plugin.test_datasets import break_image, enlarge

LOAD = [{"type": "ReadImage"}, {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True}]
RESIZE = {"type": "Resize", "scale": (96, 80), "keep_ratio": True}
FLIP = {"type": "RandomFlip", "prob": 0.5}
CROP = {
    "type": "KeepSeedsAligned",
    "transforms": [
        {"type": "RandomCrop", "crop_size": (30, 36), "allow_negative_crop": True},
        {"type": "FilterAnnotations", "min_gt_bbox_wh": (4, 4), "keep_empty": False},
    ],
}
PACK = {"type": "PackInstances"}


def build(scenes, pipeline, kind="InstanceDataset", **options):
    if kind == "InstanceDataset":
        files = {"ann_file": scenes / "masks.json", "seeds": scenes / "masks.seeds.safetensors"}
        options = {name: str(path) for name, path in files.items()} | options
    images = str(scenes / "images")
    return DATASETS.build(
        {"type": kind, "images": images, "pipeline": pipeline, "_scope_": "mmdet", **options}
    )


def assert_same_samples(one, other):
    assert torch.equal(one["inputs"], other["inputs"])
    first, second = one["data_samples"], other["data_samples"]
    assert first.metainfo == second.metainfo
    for part in ("gt_instances", "ignored_instances"):
        own, its = first.get(part), second.get(part)
        assert own.keys() == its.keys()
        for name, value in own.items():
            if name == "masks":
                np.testing.assert_array_equal(value.to_ndarray(), its.masks.to_ndarray())
                assert value.to_ndarray().dtype == its.masks.to_ndarray().dtype
            else:
                value, expected = (getattr(x, "tensor", x) for x in (value, its[name]))
                assert value.dtype == expected.dtype
                assert torch.equal(value, expected)


@pytest.mark.parametrize(
    "pipeline",
    [
        [*LOAD, RESIZE, FLIP, PACK],
        [*LOAD, {"type": "Resize", "scale_factor": 0.7, "keep_ratio": True}, CROP, FLIP, PACK],
        [*LOAD, {"type": "FixShapeResize", "width": 40, "height": 24, "keep_ratio": False}, FLIP, PACK],
        [LOAD[0], RESIZE, PACK],
        [*LOAD, FLIP, RESIZE, {"type": "PhotoMetricDistortion"}, PACK],
        [LOAD[0], FLIP, LOAD[1], PACK],
    ],
)
def test_samples_are_those_without_a_cache(scenes, pipeline):
    plain, cached = (build(scenes, pipeline, cache=kind) for kind in (None, "ram"))
    cached.fill_cache()
    (scenes / "images").rename(scenes / "elsewhere")  # what is read from here on is an error
    samples = []
    for _ in range(2):  # the first taking must leave what is kept as it is
        samples.append([cached[SeededIndex(i, seed)] for i in range(3) for seed in (1, 2)])
    (scenes / "elsewhere").rename(scenes / "images")
    expected = [plain[SeededIndex(i, seed)] for i in range(3) for seed in (1, 2)]
    for taken in samples:
        for one, other in zip(taken, expected, strict=True):
            assert_same_samples(one, other)


def test_an_index_with_a_seed_decides_the_augmentation(scenes):
    dataset = build(scenes, [*LOAD, RESIZE, FLIP, PACK])
    flipped = [[dataset[SeededIndex(0, seed)]["data_samples"].flip for seed in range(20)] for _ in range(2)]
    assert flipped[0] == flipped[1]
    assert set(flipped[0]) == {False, True}


@pytest.mark.parametrize("kind", [None, "ram"])
def test_a_broken_image_is_replaced_by_the_same_one_each_time(scenes, kind):
    enlarge(scenes)
    break_image(scenes)
    dataset = build(scenes, [*LOAD, RESIZE, FLIP, PACK], seeds=None, cache=kind)
    dataset.fill_cache()
    taken = [dataset[SeededIndex(0, seed)]["data_samples"].img_id for seed in (1, 2, 1, 2)]
    assert 10 not in taken
    assert taken[:2] == taken[2:]
    assert len(dataset.broken) == 1


def test_a_folder_without_annotations(scenes):
    pipeline = [LOAD[0], RESIZE, FLIP, PACK]
    plain, cached = (build(scenes, pipeline, "ImageFolderDataset", cache=kind) for kind in (None, "ram"))
    cached.fill_cache()
    for i in range(3):
        one, other = cached[SeededIndex(i, 1)], plain[SeededIndex(i, 1)]
        assert torch.equal(one["inputs"], other["inputs"])
        assert one["data_samples"].metainfo == other["data_samples"].metainfo


def test_more_than_half_of_the_memory_is_refused_before_reading(scenes, monkeypatch, capfd):
    pipeline = [*LOAD, RESIZE, FLIP, PACK]
    # 3 images of 64 x 96, a kilobyte each for boxes and the like; 5 masks, 8 pixels per byte, with seeds [2].
    need = 3 * (1024 + 3 * 64 * 96) + 5 * (64 * 96 // 8 + 8)
    monkeypatch.setattr(cache, "free_memory", lambda device: 2 * need)
    build(scenes, pipeline, cache="ram")
    assert "3 decoded, resized images and their masks: 0.1 MiB of the 0.1 MiB free" in capfd.readouterr().out
    monkeypatch.setattr(cache, "free_memory", lambda device: 2 * need - 1)
    monkeypatch.setattr(cache, "RunProgress", None)
    with pytest.raises(
        CacheError, match=r"0\.1 MiB, expected at most half .*; resize to less, or leave --cache out"
    ):
        build(scenes, pipeline, cache="ram")


def test_what_cannot_be_cached_is_refused(scenes):
    with pytest.raises(ValueError, match="cache: expected None or 'ram', got 'disk'"):
        build(scenes, [*LOAD, PACK], cache="disk")
    with pytest.raises(CacheError, match="begins with ReadImage, got RandomFlip, ReadImage"):
        build(scenes, [FLIP, *LOAD, PACK], cache="ram")


def test_sizes_are_those_of_the_files(scenes):
    coco = json.loads((scenes / "masks.json").read_text())
    coco["images"][1].update(height=40, width=20)
    Image.new("RGB", (20, 40)).save(scenes / "images" / "1.png")
    (scenes / "masks.json").write_text(json.dumps(coco))
    for dataset in (build(scenes, LOAD), build(scenes, LOAD[:1], "ImageFolderDataset")):
        assert list(dataset.sizes()) == [(32, 48), (40, 20), (32, 48)]
