"""Data sets inside mmengine's wrappers: sizes, seeds and caches pass through; they train."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("mmdet")

from mmengine.dataset import ConcatDataset, DefaultSampler, RepeatDataset

import sp_fast
from sp_fast.mmdet_plugin.features import StoredFeatures
from sp_fast.mmdet_plugin.samplers import SeededIndex, StepBatchSampler
from sp_fast.mmdet_plugin.wrapped import image_sizes, inner_datasets
from sp_fast.train import main
from tests.mmdet_plugin.test_datasets import build
from tests.training.runs import write_config, write_scenes


@pytest.fixture
def flipped(scenes):
    """Three images, each flipped or not, by its seed."""
    return build(scenes, {"type": "RandomFlip", "prob": 0.5})


def test_a_repeated_image_is_augmented_by_the_seed_of_its_number(flipped):
    repeated = RepeatDataset(flipped, times=4)
    flips = set()
    for seed in range(8):
        plain, found = flipped[SeededIndex(2, seed)], repeated[SeededIndex(11, seed)]
        assert torch.equal(plain["inputs"], found["inputs"])
        flips.add(found["data_samples"].flip)
    assert flips == {True, False}


def test_joined_data_sets_keep_seeds_and_sizes(flipped):
    joined = ConcatDataset([flipped, flipped])
    assert inner_datasets(joined) == [flipped, flipped]
    assert image_sizes(joined).tolist() == [[32, 48]] * 6
    for seed in range(8):
        plain, found = flipped[SeededIndex(2, seed)], joined[SeededIndex(5, seed)]
        assert torch.equal(plain["inputs"], found["inputs"])


def test_an_epoch_has_every_image_as_often_as_it_is_repeated(flipped):
    sampler = StepBatchSampler(DefaultSampler(RepeatDataset(flipped, times=8), seed=0), batch_size=4)
    assert len(sampler) == 6
    taken = [int(image) % 3 for step in range(6) for image in sampler.batch(step)]
    assert [taken.count(image) for image in range(3)] == [8, 8, 8]


def test_a_data_set_without_sizes_is_refused():
    with pytest.raises(ValueError, match=r"expected an InstanceDataset .* got range"):
        image_sizes(range(3))


CONFIG = """
train_dataloader.update(dataset=dict(
    _delete_=True,
    type='RepeatDataset',
    times=2,
    dataset=dict(
        type='InstanceDataset',
        ann_file='{scenes}/masks.json',
        images='{scenes}/labelled',
        seeds='{scenes}/masks.seeds.safetensors',
        class_agnostic=True,
        cache='ram',
        pipeline=pipeline,
    ),
))
custom_hooks = [*_base_.custom_hooks, dict(type='StoredFeaturesHook')]
train_cfg.update(max_epochs=1)
model.update(frozen_stages=4, supervision=dict(seed_channels=16))
"""


def test_training_on_a_repeated_data_set_with_its_caches(tmp_path, monkeypatch):
    """Six images twice, two per step. The backbone runs once for each of them and its mirror image."""
    stored, plain = [], StoredFeatures.store
    monkeypatch.setattr(
        StoredFeatures, "store", lambda self, keys, images: stored.extend(keys) or plain(self, keys, images)
    )
    config = write_config(tmp_path / "config.py", "pretrain")
    config.write_text(config.read_text() + CONFIG.format(scenes=write_scenes(tmp_path / "scenes")))
    assert main([str(config), "--work-dir", str(tmp_path / "run")]) == 0
    assert torch.load(tmp_path / "run" / "latest.pth", weights_only=True)["meta"]["iter"] == 6
    assert len(stored) == len(set(stored)) == 12
    image = tmp_path / "scenes" / "validation" / "000001.png"
    assert sp_fast.load(tmp_path / "run" / "latest.pth", device="cpu").predict(image).classes == ("object",)
