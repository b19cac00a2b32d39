"""Realistic inputs of the ops: smooth features, their saliency masks, boxes of many sizes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sp_fast.ops import PackedMasks, reference

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Sizes:
    """Sizes of a batch: maps as (channels, height, width), counts per image, dtypes of the maps."""

    images: int = 12
    c5: tuple[int, int, int] = (2048, 25, 42)
    p2: tuple[int, int, int] = (256, 200, 334)
    grid: tuple[int, int] = (16, 16)
    dense_grid: tuple[int, int] = (25, 42)
    boxes: int = 30
    kernels: int = 100
    prompts: int = 20
    stages: int = 3
    kept: int = 20
    dtypes: tuple[str, ...] = ("bf16", "fp32")

    def __str__(self) -> str:
        (d, h5, w5), (c, h2, w2) = self.c5, self.p2
        return f"{self.images} images; C5 {h5} x {w5} of {d} channels, P2 {h2} x {w2} of {c}"


# 12 images of 800 x 1333 for a GPU, 2 for a CPU, and a small batch for tests.
FULL = Sizes()
CPU = Sizes(images=2, dtypes=("fp32",))
SMALL = Sizes(
    images=2, c5=(16, 5, 7), p2=(8, 20, 33), grid=(2, 3), dense_grid=(5, 7), boxes=3, kernels=10, prompts=4
)


class Inputs:
    """Random inputs; i seeds the generator, so the same i gives the same inputs."""

    def __init__(self, sizes: Sizes, device: str) -> None:
        self.sizes = sizes
        self.device = device

    def _random(self, i: int, salt: int) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(1000 * salt + i)

    def _normal(self, i: int, salt: int, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self._random(i, salt), device=self.device)

    def _uniform(self, i: int, salt: int, *shape: int) -> Tensor:
        return torch.rand(*shape, generator=self._random(i, salt), device=self.device)

    def c5(self, i: int, dtype: str = "fp32", layout: str = "nchw") -> Tensor:
        """Last-stage features after a ReLU: spatially smooth, with some noise."""
        channels, height, width = self.sizes.c5
        coarse = self._normal(i, 1, self.sizes.images, channels, -(-height // 6), -(-width // 6))
        smooth = F.interpolate(coarse, size=(height, width), mode="bilinear")
        noise = self._normal(i, 2, *smooth.shape)
        return (smooth + 0.3 * noise).relu().to(DTYPES[dtype], memory_format=LAYOUTS[layout])

    def p2(self, i: int, dtype: str, layout: str) -> Tensor:
        """Finest map of a feature pyramid."""
        features = self._normal(i, 3, self.sizes.images, *self.sizes.p2)
        return features.to(DTYPES[dtype], memory_format=LAYOUTS[layout])

    def boxes(self, i: int) -> Tensor:
        """Boxes inside P2 (xyxy, in cells) with sides of 5 to 60 % of the map's, fp32."""
        _, height, width = self.sizes.p2
        sides = torch.tensor([width, height], device=self.device)
        shape = (self.sizes.images, self.sizes.boxes, 2)
        extent = (0.05 + 0.55 * self._uniform(i, 4, *shape)) * sides
        low = self._uniform(i, 5, *shape) * (sides - extent)
        return torch.cat([low, low + extent], dim=-1)

    def pooled_gradient(self, i: int, dtype: str) -> Tensor:
        """Gradient of the RoI averages."""
        return self._normal(i, 6, self.sizes.images, self.sizes.boxes, self.sizes.p2[0]).to(DTYPES[dtype])

    def masks(self, i: int, grid: tuple[int, int]) -> tuple[PackedMasks, Tensor, Tensor]:
        """Packed saliency masks of C5, their scores, and the masks as bool."""
        masks, score, _ = reference.seed_saliency(self.c5(i), [grid])
        return masks, score, masks.unpack()

    def matching(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """Kernels, prompts, and the number of real prompts per image."""
        channels = self.sizes.p2[0]
        prompts = self._normal(i, 8, self.sizes.images, self.sizes.prompts, channels)
        return self._normal(i, 7, self.sizes.kernels, channels), prompts, self._counts(i)

    def decorated_gradient(self, i: int) -> Tensor:
        """Gradient of the decorated kernels."""
        return self._normal(i, 9, self.sizes.images, self.sizes.kernels, self.sizes.p2[0])

    def supervision(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """Kernels after every stage, targets, and the kernel matched with each proposal."""
        sizes = self.sizes
        kernels = self._normal(i, 10, sizes.stages, sizes.images, sizes.kernels, sizes.p2[0])
        targets = self._normal(i, 11, sizes.images, sizes.prompts, sizes.p2[0])
        order = self._uniform(i, 12, sizes.stages, sizes.images, sizes.kernels).argsort(-1)
        padding = torch.arange(sizes.prompts, device=self.device) >= self._counts(i)[:, None]
        return kernels, targets, torch.where(padding, -1, order[:, :, : sizes.prompts])

    def _counts(self, i: int) -> Tensor:
        """Number of real prompts per image, at least half of the prompts."""
        most, random = self.sizes.prompts, self._random(i, 13)
        return torch.randint(most // 2, most + 1, (self.sizes.images,), generator=random, device=self.device)
