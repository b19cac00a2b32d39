"""The images of a training step and the random seeds of both, all derived from the number of the step."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

_ORDER, _IMAGE, _STEP = range(3)


def seed_everything(seed: int) -> None:
    """Seeds `random`, `numpy.random` and `torch` with a 32-bit number."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (mmcv's transforms draw from it)
    # Where no GPU is in use yet, torch.manual_seed takes milliseconds: it keeps a stack trace.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


def step_seed(seed: int, step: int, rank: int) -> int:
    """The 32-bit random seed of a step in one process."""
    return _mixed(seed, _STEP, step, rank)


def _mixed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class SeededIndex(int):
    """An image's number, with the 32-bit random seed of its augmentation."""

    seed: int

    def __new__(cls, index: int, seed: int) -> SeededIndex:
        """`index` as an int that carries `seed`."""
        made = super().__new__(cls, index)
        made.seed = seed
        return made

    def __reduce__(self) -> tuple[type[SeededIndex], tuple[int, int]]:
        return SeededIndex, (int(self), self.seed)


@DATA_SAMPLERS.register_module()
class StepBatchSampler(Sampler[list[SeededIndex]]):
    """Endless batches of shuffled images; the batch of a step depends only on the seed and the step.

    All images come up equally often, shuffled again each round. The processes of a distributed run share
    each round. For `StepTrainLoop`.

    Attributes:
        start: first step of an iteration.
        seed: random seed of the order and of the augmentations.

    Args:
        sampler: mmengine's DefaultSampler or InfiniteSampler: its data set, seed, rank and world size.
        batch_size: images per process and step.
        one_orientation: put tall images into batches without others, for less padding.
    """

    def __init__(self, sampler: Any, batch_size: int, one_orientation: bool = True) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size: expected at least 1, got {batch_size}")
        self.sampler = sampler  # DistSamplerSeedHook looks for it
        self.batch_size = batch_size
        self.seed: int = sampler.seed
        self.start = 0
        sizes = np.asarray(sampler.dataset.sizes()).reshape(-1, 2)
        tall = sizes[:, 0] > sizes[:, 1] if one_orientation else np.zeros(len(sizes), bool)
        self._groups = np.flatnonzero(~tall), np.flatnonzero(tall)
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def __len__(self) -> int:
        """Steps until about every image has come up once."""
        return -(-sum(map(len, self._groups)) // (self.batch_size * self.sampler.world_size))

    def __iter__(self) -> Iterator[list[SeededIndex]]:
        """The batches from step `start` on."""
        step = self.start
        while True:
            yield self.batch(step)
            step += 1

    def batch(self, step: int) -> list[SeededIndex]:
        """The images of a step in this process."""
        total = self.batch_size * self.sampler.world_size
        group, before = self._group_of(step)
        first = before * total + self.sampler.rank * self.batch_size
        images = self._groups[group]
        batch = []
        for i, place in enumerate(range(first, first + self.batch_size)):
            image = images[self._order(group, place // len(images))[place % len(images)]]
            number = step * total + self.sampler.rank * self.batch_size + i
            batch.append(SeededIndex(int(image), _mixed(self.seed, _IMAGE, number)))
        return batch

    def _group_of(self, step: int) -> tuple[int, int]:
        """The group of a step, and how many steps before had it: evenly spread, by the groups' sizes."""
        count, tall = sum(map(len, self._groups)), len(self._groups[1])
        before, after = ((k * tall + self.seed % count) // count for k in (step, step + 1))
        return (1, before) if after > before else (0, step - before)

    def _order(self, group: int, number: int) -> np.ndarray:
        """The order of a group's images in a round."""
        if (group, number) not in self._orders:
            # A batch may span two rounds.
            self._orders = {key: one for key, one in self._orders.items() if key != (group, number - 2)}
            generator = np.random.default_rng((self.seed, _ORDER, group, number))
            self._orders[group, number] = generator.permutation(len(self._groups[group]))
        return self._orders[group, number]
