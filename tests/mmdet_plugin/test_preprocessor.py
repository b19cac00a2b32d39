"""The data preprocessor: mmdet's results, and a batch that stays as it was."""

import pytest

pytest.importorskip("mmdet")

import sp_fast.models  # noqa: F401

# isort: split
import torch
from mmdet.models.data_preprocessors import DetDataPreprocessor

from benchmarks.samples import sample
from sp_fast.mmdet_plugin import preprocessor
from sp_fast.mmdet_plugin.preprocessor import BatchPreprocessor

OPTIONS = dict(mean=[123.0, 116.0, 103.0], std=[58.0, 57.0, 56.0], bgr_to_rgb=True, pad_size_divisor=32)


def batch():
    torch.manual_seed(0)
    samples = [sample(40, 60, count, 8) for count in (3, 0, 2)]
    for i, one in enumerate(samples):
        one.set_metainfo(dict(img_id=i, flip=bool(i), scale_factor=(0.5, 0.5)))
        one.ignored_instances = one.gt_instances[:0]
    inputs = [torch.randint(0, 256, (3, 40, 60), dtype=torch.uint8) for _ in samples]
    return {"inputs": inputs, "data_samples": samples}


def values(instances):
    return {name: getattr(value, "tensor", value) for name, value in instances.items() if name != "masks"}


def test_the_results_are_those_of_mmdet():
    ours = BatchPreprocessor(**OPTIONS)(batch(), training=True)
    theirs = DetDataPreprocessor(**OPTIONS)(batch(), training=True)
    assert torch.equal(ours["inputs"], theirs["inputs"])
    for one, other in zip(ours["data_samples"], theirs["data_samples"], strict=True):
        assert type(one) is type(other)
        assert one.metainfo == other.metainfo
        assert {*one.keys()} == {*other.keys()}
        for name in ("gt_instances", "ignored_instances"):
            found, wanted = one.get(name), other.get(name)
            assert len(found) == len(wanted)
            torch.testing.assert_close(values(found), values(wanted), rtol=0, atol=0)
            assert (found.masks.masks == wanted.masks.masks).all()


def test_the_batch_stays_as_it_was():
    data = batch()
    before = [({*one.keys()}, dict(one.metainfo)) for one in data["data_samples"]]
    results = BatchPreprocessor(**OPTIONS)(data, training=True)["data_samples"]
    assert "batch_input_shape" in results[0].metainfo
    results[0].gt_instances.scores = torch.ones(3)
    results[0].proposals = results[0].gt_instances
    assert [({*one.keys()}, dict(one.metainfo)) for one in data["data_samples"]] == before
    assert "scores" not in data["data_samples"][0].gt_instances


def test_data_are_on_the_device(monkeypatch):
    # Without pinned memory, which only a GPU's driver gives.
    monkeypatch.setattr(preprocessor, "to_device", lambda one, device: one.to(device))
    moved = BatchPreprocessor(**OPTIONS).to("meta").cast_data(batch()["data_samples"])
    assert all(value.is_meta for one in moved for value in values(one.gt_instances).values())
