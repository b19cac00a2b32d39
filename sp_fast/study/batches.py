"""Batches out of memory: which images a step sees, flipped or not, on the device where the model is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sp_fast.knet.targets import TARGET_STRIDE
from sp_fast.study.memory import Images, Masks

DIVISOR = 32


@dataclass(frozen=True)
class Batch:
    """B images and their L masks at most.

    Attributes:
        images: uint8 `[B, 3, H, W]`, RGB, H and W multiples of 32.
        inside: bool `[B, 1, H, W]`, what is image and not padding.
        masks: fp32 `[B, L, H/4, W/4]` in [0, 1]; padding is 0.
        labels: int64 `[B, L]`.
        boxes: fp32 `[B, L, 4]`, x0 y0 x1 y1 in pixels.
        seeds: `[B, L, D]` or None.
        count: int64 `[B]`, masks of each image.
    """

    images: Tensor
    inside: Tensor
    masks: Tensor
    labels: Tensor
    boxes: Tensor
    seeds: Tensor | None
    count: Tensor


def by_orientation(sizes: np.ndarray) -> list[np.ndarray]:
    """Which images are wide or square and which tall, each if there are any, to pad little in a batch.

    Args:
        sizes: int `[n, 2]`, height and width of the images.
    """
    tall = sizes[:, 0] > sizes[:, 1]
    return [group for group in (np.flatnonzero(~tall), np.flatnonzero(tall)) if len(group)]


def tight_canvas(sizes: np.ndarray) -> np.ndarray:
    """The smallest height and width, multiples of 32, that hold images of `sizes` `[..., 2]`."""
    return -(-sizes // DIVISOR) * DIVISOR


def in_turn(sizes: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """All images once, in batches of one canvas: what an image gives then depends on no other."""
    canvases, own = np.unique(tight_canvas(sizes), axis=0, return_inverse=True)
    for number in range(len(canvases)):
        group = np.flatnonzero(own.ravel() == number)
        for start in range(0, len(group), batch_size):
            yield group[start : start + batch_size]


class Order:
    """Which images each step sees: all equally often, in batches of one orientation to pad little.

    Every choice follows from the seed and the step alone, so a run that is taken up goes on as if it had
    never stopped.

    Args:
        sizes: int `[n, 2]`, height and width of the images.
        batch_size: images a step.
        steps: steps in all.
        seed: of the order.
    """

    def __init__(self, sizes: np.ndarray, batch_size: int, steps: int, seed: int) -> None:
        self.groups = by_orientation(sizes)
        self.batch_size, self.seed = batch_size, seed
        shares = np.cumsum([len(group) for group in self.groups]) / len(sizes)
        drawn = np.random.default_rng((seed, 0)).random(steps)
        self.group_of = np.minimum(np.searchsorted(shares, drawn, side="right"), len(self.groups) - 1)
        before = [np.cumsum(self.group_of == g) - (self.group_of == g) for g in range(len(self.groups))]
        self.taken = np.stack(before)[self.group_of, np.arange(steps)] * batch_size

    def __call__(self, step: int) -> np.ndarray:
        """The images of a step, int64 `[batch_size]`."""
        number = int(self.group_of[step])
        group = self.groups[number]
        place = self.taken[step] + np.arange(self.batch_size)
        rounds = {
            int(k): np.random.default_rng((self.seed, 1, number, int(k))).permutation(len(group))
            for k in np.unique(place // len(group))
        }
        return np.array([group[rounds[int(p) // len(group)][int(p) % len(group)]] for p in place])


def flips(seed: int, step: int, count: int) -> np.ndarray:
    """Which images of a step are flipped from left to right: bool `[count]`, each with probability 0.5."""
    return np.random.default_rng((seed, 2, step)).random(count) < 0.5


def make_batch(
    images: Images,
    masks: Masks | None,
    index: np.ndarray,
    flip: np.ndarray,
) -> Batch:
    """Cuts a batch out of memory, on the smallest canvas that holds its images.

    Args:
        images: all images.
        masks: theirs, or None.
        index: int `[B]`, which images.
        flip: bool `[B]`, which of them to flip.
    """
    device = images.pixels.device
    sizes = images.sizes[index]
    height, width = tight_canvas(sizes.max(0)).tolist()
    batch = len(index)
    counts = np.zeros(batch, np.int64) if masks is None else np.diff(masks.starts)[index]
    most = int(counts.max(initial=0))
    slot = np.arange(most)
    rows: np.ndarray = np.zeros((batch, most), np.int64)
    if masks is not None:
        rows = np.where(slot < counts[:, None], masks.starts[index][:, None] + slot, 0)
    # One transfer for all that the host knows.
    known = np.concatenate([index, flip, sizes[:, 0], sizes[:, 1], counts, rows.ravel()]).astype(np.int64)
    moved = torch.from_numpy(known).to(device, non_blocking=True)
    which, flipped, tall, wide, count = moved[: 5 * batch].view(5, batch)
    row = moved[5 * batch :].view(batch, most)
    y = torch.arange(height, device=device)
    x = torch.arange(width, device=device)
    pixels = images.pixels[which, :, :height, :width]
    column = _mirrored(x, wide, flipped)  # [B, W]
    pixels = pixels.gather(3, column[:, None, None].expand_as(pixels))
    inside = (y < tall[:, None])[:, :, None] & (x < wide[:, None])[:, None]
    if masks is None or not most:
        quarter = (height // TARGET_STRIDE, width // TARGET_STRIDE)
        empty = torch.zeros(batch, 0, 4, device=device)
        seeds = None
        if masks is not None and masks.seeds is not None:
            seeds = empty.new_zeros(batch, 0, masks.seeds.shape[1])
        labels = torch.zeros(batch, 0, dtype=torch.int64, device=device)
        return Batch(
            pixels, inside[:, None], empty.new_zeros(batch, 0, *quarter), labels, empty, seeds, count
        )
    there = torch.arange(most, device=device) < count[:, None]  # [B, L]
    cells = masks.cells[row, : height // TARGET_STRIDE, : width // TARGET_STRIDE]
    column = _mirrored(x[: width // TARGET_STRIDE], wide // TARGET_STRIDE, flipped)
    cells = cells.gather(3, column[:, None, None].expand_as(cells))
    boxes = masks.boxes[row]
    turned = torch.stack(
        [wide[:, None] - boxes[..., 2], boxes[..., 1], wide[:, None] - boxes[..., 0], boxes[..., 3]], -1
    )
    boxes = torch.where(flipped[:, None, None] > 0, turned, boxes)
    return Batch(
        images=pixels,
        inside=inside[:, None],
        masks=cells.float() / 255 * there[..., None, None],
        labels=masks.labels[row] * there,
        boxes=boxes * there[..., None],
        seeds=None if masks.seeds is None else masks.seeds[row] * there[..., None],
        count=count,
    )


def _mirrored(place: Tensor, width: Tensor, flipped: Tensor) -> Tensor:
    """Which column stands at each place `[W]`, by image `[B, W]`: mirrored within the width where flipped."""
    own = place.expand(len(width), -1)
    inner = (own < width[:, None]) & (flipped[:, None] > 0)
    return torch.where(inner, width[:, None] - 1 - own, own)
