"""Inputs as the ops meet them: smooth features, the masks these give, boxes of many sizes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from gpu_report.costs import Sizes
from sp_fast.ops import PackedMasks, reference


class Inputs:
    """Sets of inputs by number; the same number gives the same set."""

    def __init__(self, sizes: Sizes, device: str) -> None:
        self.sizes = sizes
        self.device = device

    def _random(self, i: int, salt: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(1000 * salt + i)

    def _normal(self, i: int, salt: int, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._random(i, salt), device=self.device)

    def _uniform(self, i: int, salt: int, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._random(i, salt), device=self.device)

    def c5(self, i: int, dtype: torch.dtype, layout: str) -> Tensor:
        """Last-stage features: after a ReLU, similar where they are near, with some noise."""
        channels, height, width = self.sizes.c5
        coarse = self._normal(i, 1, self.sizes.images, channels, -(-height // 6), -(-width // 6))
        smooth = F.interpolate(coarse, size=(height, width), mode="bilinear")
        noise = self._normal(i, 2, *smooth.shape)
        return _in_layout((smooth + 0.3 * noise).relu().to(dtype), layout)

    def p2(self, i: int, layout: str) -> Tensor:
        """A feature pyramid's finest map."""
        return _in_layout(self._normal(i, 3, self.sizes.images, *self.sizes.p2).bfloat16(), layout)

    def boxes(self, i: int) -> Tensor:
        """Boxes inside P2, from a twentieth to six tenths of its sides, fp32."""
        _, height, width = self.sizes.p2
        sides = torch.tensor([width, height], device=self.device)
        shape = (self.sizes.images, self.sizes.boxes, 2)
        extent = (0.05 + 0.55 * self._uniform(i, 4, *shape)) * sides
        low = self._uniform(i, 5, *shape) * (sides - extent)
        return torch.cat([low, low + extent], dim=-1)

    def pooled_gradient(self, i: int) -> Tensor:
        """Gradient of RoI average's result."""
        return self._normal(i, 6, self.sizes.images, self.sizes.boxes, self.sizes.p2[0]).bfloat16()

    def masks(self, i: int, grid: tuple[int, int]) -> tuple[PackedMasks, Tensor, Tensor]:
        """Saliency masks of C5, packed; their scores; and the masks as bool."""
        features = self.c5(i, torch.float32, "nchw")
        masks, score, _ = reference.seed_saliency(features, [grid])
        return masks, score, masks.unpack()

    def matching(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """Kernels, prompts and their counts."""
        channels = self.sizes.p2[0]
        prompts = self._normal(i, 8, self.sizes.images, self.sizes.prompts, channels)
        return self._normal(i, 7, self.sizes.kernels, channels), prompts, self._counts(i)

    def decorated_gradient(self, i: int) -> Tensor:
        """Gradient of the decorated kernels."""
        return self._normal(i, 9, self.sizes.images, self.sizes.kernels, self.sizes.p2[0])

    def supervision(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """Kernels after every stage, targets, and which kernel each proposal was matched with."""
        sizes = self.sizes
        kernels = self._normal(i, 10, sizes.stages, sizes.images, sizes.kernels, sizes.p2[0])
        targets = self._normal(i, 11, sizes.images, sizes.prompts, sizes.p2[0])
        order = self._uniform(i, 12, sizes.stages, sizes.images, sizes.kernels).argsort(-1)
        index = order[:, :, : sizes.prompts]
        padding = torch.arange(sizes.prompts, device=self.device) >= self._counts(i)[:, None]
        return kernels, targets, torch.where(padding, -1, index)

    def _counts(self, i: int) -> Tensor:
        """Numbers of real prompts, at least half of them."""
        most = self.sizes.prompts
        shape = (self.sizes.images,)
        return torch.randint(most // 2, most + 1, shape, generator=self._random(i, 13), device=self.device)


def _in_layout(x: Tensor, layout: str) -> Any:
    return x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x
