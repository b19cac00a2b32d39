"""The images of a training step and the random seeds of both, all derived from the number of the step."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

from sp_fast.mmdet_plugin.wrapped import image_sizes

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
    """An image's index, with the 32-bit random seed of its augmentation.

    `%` and `-` keep the seed: mmengine's RepeatDataset and ConcatDataset compute their indices with them.
    """

    seed: int

    def __new__(cls, index: int, seed: int) -> SeededIndex:
        """`index` as an int that carries `seed`."""
        made = super().__new__(cls, index)
        made.seed = seed
        return made

    def __mod__(self, other: int) -> SeededIndex:
        return SeededIndex(int(self) % other, self.seed)

    def __sub__(self, other: int) -> SeededIndex:
        return SeededIndex(int(self) - other, self.seed)

    def __reduce__(self) -> tuple[type[SeededIndex], tuple[int, int]]:
        return SeededIndex, (int(self), self.seed)


def bounds(images: int, count: int) -> list[tuple[int, int]]:
    """Half-open ranges [first, end) of `count` parts, whose sizes differ by at most 1."""
    return [(images * i // count, images * (i + 1) // count) for i in range(count)]


@DATA_SAMPLERS.register_module()
class StepBatchSampler(Sampler[list[SeededIndex]]):
    """Endless batches of shuffled images, for `StepTrainLoop`.

    All images come up equally often, shuffled again each round. The images of a step, and the seeds of their
    augmentation, depend only on the seed, the step and `total`. The processes share them, and each takes its
    share in `parts` batches, one after another.

    Attributes:
        start: first step of an iteration.
        seed: random seed of the order and of the augmentations.
        total: images per step.
        parts: batches per step, the same number in each process.
        mean_share: images per step and process, on average: shares differ by one image at most.

    Args:
        sampler: mmengine's DefaultSampler or InfiniteSampler: its data set, seed, rank and world size.
        batch_size: largest number of images per batch.
        total: images per step in all processes; None for one batch in each process.
        one_orientation: put tall images into steps without others, for less padding.

    Raises:
        ValueError: a number below 1, or a process would have no image for one of its batches.
    """

    def __init__(
        self, sampler: Any, batch_size: int, total: int | None = None, one_orientation: bool = True
    ) -> None:
        processes = sampler.world_size
        total = batch_size * processes if total is None else total
        for name, value in (("batch_size", batch_size), ("total (--total-batch)", total)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        self.sampler = sampler  # DistSamplerSeedHook looks for it
        self.total = total
        self.parts = -(-total // (batch_size * processes))
        self.mean_share = total / processes
        if self.parts > total // processes:
            fitting = [one for one in (total - total % processes, total + -total % processes) if one]
            raise ValueError(
                f"total (--total-batch): {total} images per step do not give each of {processes} processes "
                f"an image in each of {self.parts} batches of at most {batch_size}; "
                f"{' or '.join(map(str, fitting))} would fit"
            )
        self.seed: int = sampler.seed
        self.start = 0
        sizes = image_sizes(sampler.dataset)
        tall = sizes[:, 0] > sizes[:, 1] if one_orientation else np.zeros(len(sizes), bool)
        self._groups = np.flatnonzero(~tall), np.flatnonzero(tall)
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def __len__(self) -> int:
        """Steps until about every image has come up once."""
        return -(-sum(map(len, self._groups)) // self.total)

    def __iter__(self) -> Iterator[list[SeededIndex]]:
        """The batches from step `start` on, `parts` of each step."""
        for step in itertools.count(self.start):
            images = self.batch(step)
            for first, end in bounds(len(images), self.parts):
                yield images[first:end]

    def batch(self, step: int) -> list[SeededIndex]:
        """The images of a step in this process."""
        group, before = self._group_of(step)
        images = self._groups[group]
        batch = []
        for i in range(*bounds(self.total, self.sampler.world_size)[self.sampler.rank]):
            place = before * self.total + i
            image = images[self._order(group, place // len(images))[place % len(images)]]
            seed = _mixed(self.seed, _IMAGE, step * self.total + i)
            batch.append(SeededIndex(int(image), seed))
        return batch

    def _group_of(self, step: int) -> tuple[int, int]:
        """The group of a step, and how many steps before had it: evenly spread, by the groups' sizes."""
        count, tall = sum(map(len, self._groups)), len(self._groups[1])
        before, after = ((k * tall + self.seed % count) // count for k in (step, step + 1))
        return (1, before) if after > before else (0, step - before)

    def _order(self, group: int, number: int) -> np.ndarray:
        """The order of a group's images in a round."""
        if (group, number) not in self._orders:
            # The next step may begin in the round that this one ends in.
            kept = (key for key in self._orders if key[0] != group or key[1] == number - 1)
            self._orders = {key: self._orders[key] for key in kept}
            generator = np.random.default_rng((self.seed, _ORDER, group, number))
            self._orders[group, number] = generator.permutation(len(self._groups[group]))
        return self._orders[group, number]
