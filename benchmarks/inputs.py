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

    @property
    def levels(self) -> list[tuple[int, int]]:
        """Heights and widths of C5, C4 and C3, the levels of Mask2Former's encoder."""
        _, height, width = self.c5
        return [(height * k, width * k) for k in (1, 2, 4)]

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

    def saliency(
        self, i: int, grid: tuple[int, int], dtype: str, layout: str = "nchw"
    ) -> tuple[Tensor, tuple[int, int]]:
        """Last-stage features and the grid of seeds."""
        return self.c5(i, dtype, layout), grid

    def boxes(self, i: int) -> Tensor:
        """Boxes inside P2 (xyxy, in cells) with sides of 5 to 60 % of the map's, fp32."""
        _, height, width = self.sizes.p2
        sides = torch.tensor([width, height], device=self.device)
        shape = (self.sizes.images, self.sizes.boxes, 2)
        extent = (0.05 + 0.55 * self._uniform(i, 4, *shape)) * sides
        low = self._uniform(i, 5, *shape) * (sides - extent)
        return torch.cat([low, low + extent], dim=-1)

    def pooling(self, i: int, dtype: str, layout: str, backward: bool = False) -> tuple[Tensor, ...]:
        """Finest map of a feature pyramid, boxes; for `backward`, first the gradient of the averages."""
        sizes = self.sizes
        p2 = self._normal(i, 3, sizes.images, *sizes.p2).to(DTYPES[dtype], memory_format=LAYOUTS[layout])
        gradient = self._normal(i, 6, sizes.images, sizes.boxes, sizes.p2[0]).to(DTYPES[dtype])
        return (gradient, p2, self.boxes(i)) if backward else (p2, self.boxes(i))

    def masks(self, i: int, grid: tuple[int, int]) -> tuple[PackedMasks, Tensor, Tensor]:
        """Packed saliency masks of C5, their scores, and the masks as bool."""
        masks, score, _ = reference.seed_saliency(self.c5(i), [grid])
        return masks, score, masks.unpack()

    def matching(self, i: int, backward: bool = False) -> tuple[Tensor, ...]:
        """Kernels, prompts, number of real prompts; for `backward`, first the gradient of the result."""
        channels = self.sizes.p2[0]
        prompts = self._normal(i, 8, self.sizes.images, self.sizes.prompts, channels)
        inputs = self._normal(i, 7, self.sizes.kernels, channels), prompts, self._counts(i)
        gradient = self._normal(i, 9, self.sizes.images, self.sizes.kernels, channels)
        return (gradient, *inputs) if backward else inputs

    def supervision(self, i: int, backward: bool = False) -> tuple[Tensor, ...]:
        """Kernels after every stage, targets, matched kernels; for `backward`, first the loss gradient."""
        sizes = self.sizes
        kernels = self._normal(i, 10, sizes.stages, sizes.images, sizes.kernels, sizes.p2[0])
        targets = self._normal(i, 11, sizes.images, sizes.prompts, sizes.p2[0])
        order = self._uniform(i, 12, sizes.stages, sizes.images, sizes.kernels).argsort(-1)
        padding = torch.arange(sizes.prompts, device=self.device) >= self._counts(i)[:, None]
        inputs = kernels, targets, torch.where(padding, -1, order[:, :, : sizes.prompts])
        return (torch.ones((), device=self.device), *inputs) if backward else inputs

    def image_masks(self, i: int) -> tuple[Tensor, Tensor]:
        """Mask logits of every kernel at half the size of P2; targets, in quarters, one per prompt."""
        sizes = self.sizes
        height, width = sizes.p2[1] // 2, sizes.p2[2] // 2
        coarse = self._normal(i, 14, sizes.images, sizes.kernels, -(-height // 8), -(-width // 8))
        logits = 4 * F.interpolate(coarse, size=(height, width), mode="bilinear")
        low, extent = self._uniform(i, 15, 2, sizes.images, sizes.prompts, 2, 1, 1)
        y = torch.arange(2 * height, device=self.device)[:, None] / (2 * height)
        x = torch.arange(2 * width, device=self.device) / (2 * width)
        inside = [
            (at >= low[:, :, d]) & (at < low[:, :, d] + extent[:, :, d] / 2) for d, at in enumerate((y, x))
        ]
        return logits, 4 * (inside[0] & inside[1]).to(torch.uint8)

    def mask_pairs(self, i: int) -> tuple[Tensor, ...]:
        """The gradient of the sums; logits and targets of one pair per prompt; and their rows."""
        logits, masks = self.image_masks(i)
        pairs = logits[:, : self.sizes.prompts].flatten(0, 1)
        rows = torch.arange(len(pairs), device=self.device)
        return self._normal(i, 16, 3, len(pairs)), pairs, masks.flatten(0, 1), rows

    def class_maps(self, i: int) -> tuple[Tensor, ...]:
        """The gradient of the loss; logits of 80 classes at half the size of P2; labels, mostly 80."""
        sizes = self.sizes
        height, width = sizes.p2[1] // 2, sizes.p2[2] // 2
        logits = self._normal(i, 17, sizes.images, 80, height, width) - 4
        labels = 320 * self._uniform(i, 18, sizes.images, 2 * height, 2 * width)
        return torch.ones((), device=self.device), logits, labels.long().clamp(max=80)

    def attention(self, i: int, dtype: str, backward: bool = False) -> tuple[Tensor, ...]:
        """Value, locations, weights and sizes of deformable attention with 8 heads and 4 points per level.

        Every cell asks for points around itself; for `backward`, first the gradient of the result.
        """
        images, channels, levels = self.sizes.images, self.sizes.p2[0], self.sizes.levels
        sizes = torch.tensor(levels, device=self.device)
        centres = [
            (torch.cartesian_prod(*(torch.arange(n, device=self.device) + 0.5 for n in side)) / size).flip(1)
            for side, size in zip(levels, sizes, strict=True)
        ]
        keys = sum(map(len, centres))
        shape = (images, keys, 8, len(levels), 4)
        offsets = 2 * self._normal(i, 14, *shape, 2) / sizes.flip(1)[:, None]
        locations = torch.cat(centres)[:, None, None, None] + offsets
        weights = self._normal(i, 15, *shape).flatten(3).softmax(-1).view(shape)
        value = self._normal(i, 16, images, keys, 8, channels // 8).to(DTYPES[dtype])
        gradient = self._normal(i, 17, images, keys, channels).to(DTYPES[dtype])
        inputs = value, locations, weights, sizes
        return (gradient, *inputs) if backward else inputs

    def _counts(self, i: int) -> Tensor:
        """Number of real prompts per image, at least half of the prompts."""
        most, random = self.sizes.prompts, self._random(i, 13)
        return torch.randint(most // 2, most + 1, (self.sizes.images,), generator=random, device=self.device)
