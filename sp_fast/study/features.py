"""A frozen backbone runs once for each image and its mirror image; then its maps come out of memory."""

from __future__ import annotations

import math
import os

import numpy as np
import torch
from torch import Tensor, nn

from sp_fast.study.batches import Batch, in_turn, make_batch
from sp_fast.study.memory import Images, Progress
from sp_fast.study.precision import mixed_precision

BATCH_SIZE = 16


def is_frozen(backbone: nn.Module) -> bool:
    """Whether a backbone gives the same maps at every step: nothing is trained, no statistics are kept."""
    normalised = [one for one in backbone.modules() if isinstance(one, nn.modules.batchnorm._BatchNorm)]
    return not any(one.requires_grad for one in backbone.parameters()) and not any(
        one.training for one in normalised
    )


class StoredFeatures:
    """The maps of a frozen backbone.

    They are those of each image on its own smallest canvas, as it is evaluated, whatever the batch: the
    padding of a larger one would reach far into them, since batch norm makes it differ from zero within the
    network.

    Args:
        stages: of each stage `[n, 2, C, h, w]`: of the image, and of its mirror image; 0 beyond their canvas.
        size: side in pixels of the square that all images fit into.
    """

    def __init__(self, stages: list[Tensor], size: int) -> None:
        self.stages, self.size = stages, size
        self._taken: tuple[Tensor, ...] = ()

    def take(self, index: np.ndarray, flip: np.ndarray, batch: Batch) -> None:
        """Chooses whose maps come next, at the height and width of `batch`."""
        device = self.stages[0].device
        which, flipped = (torch.from_numpy(one.astype(np.int64)).to(device) for one in (index, flip))
        height, width = batch.images.shape[-2:]
        self._taken = tuple(
            stage[..., : stage.shape[-2] * height // self.size, : stage.shape[-1] * width // self.size][
                which, flipped
            ]
            for stage in self.stages
        )

    def attach(self, backbone: nn.Module) -> None:
        """From now on `backbone(images)` gives what was taken, once, and else runs."""

        def forward(images: Tensor) -> tuple[Tensor, ...]:
            taken, self._taken = self._taken, ()
            return taken or type(backbone).forward(backbone, images)

        backbone.forward = forward  # type: ignore[method-assign]


@torch.no_grad()
def store_features(
    backbone: nn.Module, normalize: nn.Module, images: Images, progress: Progress
) -> StoredFeatures | None:
    """Runs a frozen backbone over all images, both ways; None if the maps would take half the free memory.

    Args:
        backbone: in the mode in which it is trained with.
        normalize: for its images.
        images: on its device.
        progress: called with (images done, images in all).
    """
    device, size = images.pixels.device, images.pixels.shape[-1]
    total = len(images.sizes)
    stages: list[Tensor] = []
    done = 0
    for index in in_turn(images.sizes, BATCH_SIZE):
        rows = torch.from_numpy(index).to(device)
        for way in (False, True):
            batch = make_batch(images, None, index, np.full(len(index), way))
            with mixed_precision(device):
                maps = backbone(normalize(batch))
            if not stages:
                shapes = [(total, 2, *_whole(one, batch.images, size)) for one in maps]
                need = sum(
                    math.prod(shape) * one.element_size() for shape, one in zip(shapes, maps, strict=True)
                )
                if need > _free_memory(device) / 2:
                    return None
                stages = [one.new_zeros(shape) for shape, one in zip(shapes, maps, strict=True)]
            for stage, one in zip(stages, maps, strict=True):
                stage[rows, int(way), :, : one.shape[-2], : one.shape[-1]] = one
        done += len(index)
        progress(done, total)
    return StoredFeatures(stages, size)


def _whole(maps: Tensor, images: Tensor, size: int) -> tuple[int, int, int]:
    """Channels, height and width that the maps of `images` would have for images of `size` x `size`."""
    (height, width), (rows, columns) = images.shape[-2:], maps.shape[-2:]
    return maps.shape[1], size * rows // height, size * columns // width


def _free_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
