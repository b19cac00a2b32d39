"""Which images a step sees: shuffled, shared by the processes, and the same wherever a run begins."""

from __future__ import annotations

import itertools
import pickle
import random
from collections import Counter
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import pytest
import torch

pytest.importorskip("mmdet")

import sp_fast.models  # noqa: F401

# isort: split
from sp_fast.mmdet_plugin.samplers import SeededIndex, StepBatchSampler, seed_everything, step_seed

WIDE, TALL = (32, 48), (48, 32)


class Images:
    """A data set with nothing but sizes."""

    metainfo: ClassVar = {}

    def __init__(self, sizes):
        self._sizes = sizes

    def __len__(self):
        return len(self._sizes)

    def full_init(self):
        pass

    def sizes(self):
        return self._sizes


def sampler(sizes, batch_size=4, rank=0, world_size=1, seed=7, **options):
    dataset = Images(sizes) if isinstance(sizes, list) else sizes
    plain = SimpleNamespace(dataset=dataset, seed=seed, rank=rank, world_size=world_size)
    return StepBatchSampler(plain, batch_size, **options)


def batches(made, count):
    return list(itertools.islice(iter(made), count))


def with_seeds(batch):
    return [(int(one), one.seed) for one in batch]


def test_every_round_has_every_image_once_in_another_order():
    made = sampler([WIDE] * 12)
    taken = [int(image) for batch in batches(made, 6) for image in batch]
    rounds = [taken[:12], taken[12:]]
    assert sorted(rounds[0]) == sorted(rounds[1]) == list(range(12))
    assert rounds[0] != rounds[1]
    assert len(made) == 3


def test_batches_have_one_orientation_and_images_come_up_equally_often():
    sizes = [WIDE] * 20 + [TALL] * 10
    taken = batches(sampler(sizes, batch_size=3), 40)
    assert all(len({image < 20 for image in batch}) == 1 for batch in taken)
    counts = Counter(int(image) for batch in taken for image in batch)
    for group in (range(20), range(20, 30)):
        assert max(counts[image] for image in group) - min(counts[image] for image in group) <= 1
    tall = sum(batch[0] >= 20 for batch in taken)
    assert abs(tall - 40 / 3) < 1
    mixed = batches(sampler(sizes, batch_size=3, one_orientation=False), 10)
    assert any(len({image < 20 for image in batch}) == 2 for batch in mixed)


def test_a_later_start_goes_on_with_the_same_batches_and_seeds():
    sizes = [WIDE] * 7 + [TALL] * 4
    made, late = sampler(sizes), sampler(sizes)
    late.start = 9
    expected = [with_seeds(one) for one in batches(made, 12)[9:]]
    assert [with_seeds(one) for one in batches(late, 3)] == expected
    assert [with_seeds(one) for one in batches(late, 3)] == expected  # a second iterator too


def test_processes_share_what_one_would_see():
    sizes = [WIDE] * 7 + [TALL] * 5
    shares = [batches(sampler(sizes, batch_size=2, rank=rank, world_size=3), 8) for rank in range(3)]
    whole = batches(sampler(sizes, batch_size=6), 8)
    for step in range(8):
        assert [one for share in shares for one in with_seeds(share[step])] == with_seeds(whole[step])


@pytest.mark.parametrize(
    ("world_size", "batch_size"), [(1, 12), (1, 5), (2, 3), (3, 2), (4, 1), (5, 2), (12, 4)]
)
def test_a_step_of_given_size_is_the_same_for_any_processes_and_batches(world_size, batch_size):
    sizes = [WIDE] * 7 + [TALL] * 4
    whole = batches(sampler(sizes, batch_size=12), 6)
    made = [
        sampler(sizes, batch_size, rank=rank, world_size=world_size, total=12) for rank in range(world_size)
    ]
    assert {len(one) for one in made} == {1}
    (parts,) = {one.parts for one in made}
    taken = [batches(one, 6 * parts) for one in made]
    assert {len(batch) for share in taken for batch in share} <= set(range(1, batch_size + 1))
    for step in range(6):
        seen = [
            image for share in taken for batch in share[step * parts :][:parts] for image in with_seeds(batch)
        ]
        assert seen == with_seeds(whole[step])


def test_a_later_start_begins_with_the_first_batch_of_its_step():
    made, late = (sampler([WIDE] * 7, batch_size=2, total=5) for _ in range(2))
    late.start = 3
    assert [with_seeds(one) for one in batches(late, 6)] == [with_seeds(one) for one in batches(made, 15)[9:]]


@pytest.mark.parametrize(
    ("total", "batch_size", "world_size", "words"),
    [
        (0, 2, 1, r"total \(--total-batch\): expected at least 1, got 0"),
        (1, 2, 2, "1 images per step do not give each of 2 processes .* at most 2; 2 would fit"),
        (9, 1, 4, "each of 4 processes an image in each of 3 batches of at most 1; 8 or 12 would fit"),
    ],
)
def test_a_process_without_images_is_refused(total, batch_size, world_size, words):
    with pytest.raises(ValueError, match=words):
        sampler([WIDE], batch_size, world_size=world_size, total=total)


def test_seeds_differ_between_images_rounds_and_runs():
    seeds = [one.seed for batch in batches(sampler([WIDE] * 8), 50) for one in batch]
    assert len(set(seeds)) == len(seeds)
    other = [one.seed for batch in batches(sampler([WIDE] * 8, seed=8), 50) for one in batch]
    assert not set(seeds) & set(other)
    assert len({step_seed(7, step, rank) for step in range(50) for rank in range(4)}) == 200


def test_an_index_keeps_its_seed_on_the_way_to_another_process():
    again = pickle.loads(pickle.dumps(SeededIndex(3, 11)))
    assert (again, again.seed) == (3, 11)


def test_a_seed_decides_all_that_is_drawn():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002

    seed_everything(5)
    first = draw()
    draw()
    seed_everything(5)
    assert draw() == first


def test_a_batch_of_nothing_is_refused():
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        sampler([WIDE], batch_size=0)
