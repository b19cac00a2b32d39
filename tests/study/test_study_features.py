"""The maps of a frozen backbone out of memory are those that it gives, for an image and its mirror image."""

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")

from sp_fast.study import features
from sp_fast.study.batches import make_batch
from sp_fast.study.features import is_frozen, store_features
from sp_fast.study.memory import Images
from sp_fast.study.models import Normalizer, build_detector, load_settings
from tests.study.study_data import write_config

SIZE = 64


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return load_settings(str(write_config(tmp_path_factory.mktemp("features") / "narrow.py")))


@pytest.fixture
def images():
    """A square, a wide and a tall image."""
    sizes = np.array([[64, 64], [28, 64], [64, 32]])
    pixels = torch.zeros(3, 3, SIZE, SIZE, dtype=torch.uint8)
    generator = np.random.default_rng(0)
    for i, (height, width) in enumerate(sizes):
        drawn = generator.integers(0, 256, (3, height, width), np.uint8)
        pixels[i, :, :height, :width] = torch.from_numpy(drawn)
    return Images(pixels, sizes)


def frozen(settings, stages=4):
    changed = settings.copy()
    changed.model.backbone.frozen_stages = stages
    backbone = build_detector(changed, 2, 0, None).train().backbone
    with torch.no_grad():  # as in trained weights, where zeros do not stay zeros
        for one in backbone.modules():
            if isinstance(one, torch.nn.BatchNorm2d):
                one.bias.fill_(0.5)
    return backbone


def stored(settings, images):
    backbone = frozen(settings)
    normalize = Normalizer(settings.model.data_preprocessor)
    made = store_features(backbone, normalize, images, lambda done, total: None)
    return backbone, normalize, made


def test_only_what_never_changes_counts_as_frozen(settings):
    assert is_frozen(frozen(settings))
    assert not is_frozen(frozen(settings, stages=1))
    moving = frozen(settings)
    next(one for one in moving.modules() if isinstance(one, torch.nn.BatchNorm2d)).train()
    assert not is_frozen(moving)


@pytest.mark.parametrize("flip", [(False, False, False), (True, False, True)])
def test_maps_are_those_of_each_image_alone_whatever_the_batch(settings, images, flip, monkeypatch):
    monkeypatch.setattr("sp_fast.study.precision.multiplies_bf16", lambda device: False)
    backbone, normalize, made = stored(settings, images)
    index, flip = np.array([2, 0, 1]), np.array(flip)
    alone = [
        backbone(normalize(make_batch(images, None, index[i : i + 1], flip[i : i + 1]))) for i in range(3)
    ]
    batch = make_batch(images, None, index, flip)
    inputs = normalize(batch)
    together = backbone(inputs)
    made.attach(backbone)
    made.take(index, flip, batch)
    maps = backbone(torch.full_like(inputs, torch.nan))
    for stage, one in enumerate(maps):
        for i in range(3):
            own = alone[i][stage][0]
            rows, columns = own.shape[-2:]
            torch.testing.assert_close(one[i, :, :rows, :columns], own)
            assert not one[i, :, rows:].any()
            assert not one[i, :, :, columns:].any()
    assert together[-1][0, :, :, 1:].any()  # beyond the tall image, where the batch's canvas goes on
    torch.testing.assert_close(backbone(inputs), together)  # taken once; now it runs


def test_a_batch_takes_its_part_of_the_canvas(settings, images):
    backbone, _, made = stored(settings, images)
    index, flip = np.array([1]), np.array([True])
    batch = make_batch(images, None, index, flip)
    assert batch.images.shape[-2:] == (32, 64)
    made.attach(backbone)
    made.take(index, flip, batch)
    maps = backbone(batch.images)
    assert [tuple(one.shape[-2:]) for one in maps] == [(8, 16), (4, 8), (2, 4), (1, 2)]
    for one, stage in zip(maps, made.stages, strict=True):
        assert torch.equal(one[0], stage[1, 1, :, : one.shape[-2]])


def test_maps_that_do_not_fit_are_not_kept(settings, images, monkeypatch):
    need = sum(one.numel() * one.element_size() for one in stored(settings, images)[2].stages)
    for free, kept in ((2 * need, True), (2 * need - 2, False)):
        monkeypatch.setattr(features, "_free_memory", lambda device, free=free: free)
        assert (stored(settings, images)[2] is not None) == kept
