"""A frozen backbone's maps out of memory: those it would give, and only where it gives them each time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("mmdet")

import sp_fast.models  # noqa: F401

# isort: split
import mmdet.models
from mmdet.models.backbones import ResNet
from mmdet.registry import DATASETS
from torch import nn

from sp_fast.mmdet_plugin import features
from sp_fast.mmdet_plugin.cache import CacheError
from sp_fast.mmdet_plugin.features import StoredFeatures, check_same_each_step
from tests.mmdet_plugin.step_runs import assert_same, run
from tests.mmdet_plugin.test_cache import FLIP, LOAD, PACK, RESIZE
from tests.training.runs import write_scenes

FROZEN = "backbone.frozen_stages=4"


def small_backbone(frozen_stages=4):
    torch.manual_seed(0)
    backbone = ResNet(18, base_channels=4, frozen_stages=frozen_stages)
    backbone.double().train()  # mmdet's gives None back
    return backbone


def sample(number, flip):
    return SimpleNamespace(img_id=number, get={"flip": flip}.get)


def test_maps_are_each_images_own_at_the_batchs_size():
    """In fp64, where what another batch size does to the order of sums is below 1e-12."""
    backbone = small_backbone()
    images = [torch.randn(1, 3, 64, 96).double(), torch.randn(1, 3, 96, 64).double()]
    own = [backbone(image) for image in images]
    stored = StoredFeatures(backbone)
    for number, image in enumerate(images):
        stored.store([(number, False)], image)
        stored.store([(number, True)], image.flip(3))
    mirrored = backbone(images[0].flip(3))

    stored.take([sample(0, False), sample(1, False), sample(0, True)])
    taken = backbone(torch.zeros(3, 3, 96, 96).double())
    for level, maps in enumerate(taken):
        stride = 4 * 2**level
        assert maps.shape[-2:] == (96 // stride, 96 // stride)
        for i, expected in enumerate((own[0][level], own[1][level], mirrored[level])):
            rows, columns = expected.shape[-2:]
            torch.testing.assert_close(maps[i : i + 1, :, :rows, :columns], expected, rtol=1e-12, atol=1e-12)
            assert maps[i, :, rows:].eq(0).all()
            assert maps[i, :, :, columns:].eq(0).all()

    again = backbone(images[1])  # nothing is taken twice
    torch.testing.assert_close(again[3], own[1][3], rtol=0, atol=0)


@pytest.fixture(scope="module")
def scene_set(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.mark.parametrize(("model", "kind"), [("knet_r50", "pretrain"), ("mask2former_r50", "finetune")])
def test_training_takes_maps_and_validation_runs(scene_set, tmp_path, monkeypatch, model, kind):
    ran, taken = [], []
    plain, stored = ResNet.forward, StoredFeatures._forward

    def forward(backbone, images):
        ran.append((len(images), backbone))
        return plain(backbone, images)

    def from_memory(self, images):
        """What the step's own images give and what is taken instead, side by side."""
        own = plain(ran[0][1], images) if self._next else None
        maps = stored(self, images)
        if own is not None:
            taken.append((maps, own))
        return maps

    monkeypatch.setattr(ResNet, "forward", forward)
    monkeypatch.setattr(StoredFeatures, "_forward", from_memory)
    option = f"model.{'detector.' if kind == 'pretrain' else ''}{FROZEN}"
    result = run(scene_set, tmp_path, model, kind, option, arguments=("--cache", "features"))
    assert result.status == 0, result.printed[-3000:]
    assert "maps of 6 images and their mirror images" in result.printed
    # All 6 scenes at once, twice; then the 3 validation images one by one, at 4 validations.
    assert [count for count, _ in ran] == [6, 6, *[1] * (12 if kind == "finetune" else 0)]
    assert len(taken) == 5
    for maps, own in taken:
        for one, other in zip(maps, own, strict=True):
            # 64 x 64 pixels each, so padding makes no difference: fp32 sums of up to 288 terms a layer, 17
            # layers deep, in another order.
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


def test_memory_changes_nothing_of_a_run(scene_set, tmp_path):
    one, other = (
        run(scene_set, tmp_path / str(len(extra)), "knet_r50", "finetune", arguments=extra)
        for extra in ((), ("--cache", "ram"))
    )
    assert (one.status, other.status) == (0, 0)
    assert_same(one.checkpoint()["state_dict"], other.checkpoint()["state_dict"])
    assert one.scalars() == other.scalars()
    assert other.printed.count("decoded, resized images and their masks") == 2  # training and validation


def dataset(scenes, *random, cache="ram", **pack):
    return DATASETS.build(
        {
            "type": "InstanceDataset",
            "ann_file": str(scenes / "masks.json"),
            "images": str(scenes / "images"),
            "pipeline": [*LOAD, RESIZE, *random, {**PACK, **pack}],
            "cache": cache,
            "_scope_": "mmdet",
        }
    )


def test_what_changes_from_step_to_step_is_refused(scenes):
    preprocessor = mmdet.models.DetDataPreprocessor(pad_size_divisor=32)
    frozen, flips = small_backbone(), dataset(scenes, FLIP)
    check_same_each_step(frozen, flips, preprocessor)

    def refused(message, backbone=frozen, data=flips, batches=preprocessor):
        with pytest.raises(CacheError, match=message):
            check_same_each_step(backbone, data, batches)

    refused("trains layer4.0.conv1.weight and 14 other parameters", small_backbone(3))
    for changing in (nn.BatchNorm2d(3), nn.Dropout()):
        refused("got 1 in training mode", nn.Sequential(nn.ReLU(), changing).requires_grad_(False))
    refused("expected train_dataloader.dataset.cache='ram', got None", data=dataset(scenes, cache=None))
    refused("horizontal RandomFlip, got RandomFlip", data=dataset(scenes, {**FLIP, "direction": "vertical"}))
    crop = {"type": "RandomCrop", "crop_size": (8, 8)}
    refused("horizontal RandomFlip, got RandomCrop", data=dataset(scenes, FLIP, crop))
    refused("got PackInstances", data=dataset(scenes, FLIP, meta_keys=("img_id",)))
    resize = {"type": "BatchSyncRandomResize", "random_size_range": (32, 64)}
    batches = mmdet.models.DetDataPreprocessor(pad_size_divisor=32, batch_augments=[resize])
    refused("got batch_augments", batches=batches)


def test_a_refusal_ends_the_command_with_a_line(scene_set, tmp_path, monkeypatch):
    command = ("knet_r50", "pretrain")
    result = run(scene_set, tmp_path, *command, arguments=("--cache", "features"))
    assert result.status == 2
    assert "sp-fast train: --cache features: expected a frozen backbone" in result.printed

    def too_much(what, *_):
        raise CacheError(what)

    monkeypatch.setattr(features, "check_fits", too_much)
    frozen = f"model.detector.{FROZEN}"
    result = run(scene_set, tmp_path, *command, frozen, arguments=("--cache", "features"))
    assert result.status == 2
    assert "sp-fast train: the backbone's maps of 6 images and their mirror images" in result.printed


def test_a_batch_in_parts_takes_its_maps_in_turn():
    backbone = small_backbone()
    images = torch.rand(3, 3, 32, 32, dtype=torch.float64)
    expected = backbone(images)
    stored = StoredFeatures(backbone)
    stored.store([(number, False) for number in range(3)], images)
    stored.take([sample(number, False) for number in (2, 0, 1)])
    for start, numbers in ((0, [2]), (1, [0, 1])):
        found = backbone(images[start : start + len(numbers)])  # whatever the images are
        assert all(torch.equal(one, other[numbers]) for one, other in zip(found, expected, strict=True))
