"""Batches in one piece of shared memory: the same, and the memory used again once they are gone."""

import gc

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")

import sp_fast.models  # noqa: F401

# isort: split
from mmdet.structures import DetDataSample
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData
from torch.utils.data import DataLoader, Dataset

from sp_fast.knet.packed_bitmaps import PackedBitmaps
from sp_fast.mmdet_plugin.shared_batch import SharedCollate
from sp_fast.ops import PackedMasks


class Samples(Dataset):
    """Samples of different sizes; number 3 is large."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict:
        random = torch.Generator().manual_seed(index)
        size = 200 if index == 3 else 20 + index
        masks = torch.rand(index % 3, 5, 7, generator=random) < 0.5
        found = PackedBitmaps(PackedMasks.pack(masks), 7, 5, quarter=False)
        instances = InstanceData(labels=torch.arange(index % 3), masks=found)
        meta = {"img_path": f"{index}.jpg", "memory": np.zeros(1)}
        return {
            "inputs": torch.randint(0, 255, (3, size, size), generator=random, dtype=torch.uint8).mT,
            "data_samples": DetDataSample(metainfo=meta, gt_instances=instances),
            "rest": (torch.tensor(2.5, dtype=torch.float64), torch.zeros(0, 4).to(torch.bfloat16), None),
        }


def assert_same(found: dict, expected: dict) -> None:
    """Two batches of the same values."""
    for one, other in zip(found["inputs"], expected["inputs"], strict=True):
        assert torch.equal(one, other)
    for one, other in zip(found["data_samples"], expected["data_samples"], strict=True):
        assert one.img_path == other.img_path
        assert torch.equal(one.gt_instances.labels, other.gt_instances.labels)
        np.testing.assert_array_equal(one.gt_instances.masks.masks, other.gt_instances.masks.masks)
    for one, other in zip(found["rest"], expected["rest"], strict=True):
        for value, its in zip(one, other, strict=True):
            assert value is its is None or (value.dtype == its.dtype and torch.equal(value, its))


@pytest.mark.parametrize("workers", [0, 2])
def test_same_batches(workers):
    def loader(collate):
        return DataLoader(Samples(), batch_size=2, num_workers=workers, collate_fn=collate)

    expected = list(loader(pseudo_collate))
    shared = SharedCollate(pseudo_collate)
    kept = list(loader(shared))  # nothing is used again while the batches are there
    for _ in range(2):
        for found, whole, again in zip(loader(shared), expected, kept, strict=True):
            assert_same(found, whole)
            assert_same(again, whole)
    if workers:
        memories = {one.untyped_storage().data_ptr() for one in kept[0]["inputs"]}
        assert len(memories) == 1


def test_memory_is_used_again_once_a_batch_is_gone():
    import pickle
    from multiprocessing.reduction import ForkingPickler

    shared = SharedCollate(pseudo_collate)

    def passed(*indices):
        return pickle.loads(
            ForkingPickler.dumps(shared.shared(pseudo_collate([Samples()[k] for k in indices])))
        )

    first, second = passed(0, 1), passed(1, 2)
    assert len(shared._memories) == 2
    part = first["inputs"][1][0, :2]
    before = part.clone()
    del first
    gc.collect()
    third = passed(2, 4)
    assert len(shared._memories) == 3
    assert torch.equal(part, before)
    del part, third
    gc.collect()
    passed(0, 1)
    assert len(shared._memories) == 3
    passed(3, 3)  # larger than all that are free, which are given up
    assert len(shared._memories) == 2
    assert_same(second, pseudo_collate([Samples()[1], Samples()[2]]))
