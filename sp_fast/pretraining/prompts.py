"""Prompt generation (Eq. 5) and prompt-kernel matching (Eq. 6-8), on plain tensors of any model family."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sp_fast.ops import match_prompts, roi_average_pool
from sp_fast.transfers import to_device

STRATEGIES = ("cosine", "random", "sequential", "none")
BOX_SIZE = "box_size"


class PromptGenerator(nn.Module):
    """Computes prompts by Eq. 5: the prompt of a proposal is the mean feature inside its tight box.

    Args:
        levels: maps of the feature pyramid to pool from. A name such as `"P5"` (the map of stride 2^5), an
            index into the pyramid, or several of these, whose prompts are averaged; the default, `-1`, is the
            coarsest, as in the authors' code. With `"box_size"` each box has the level that FPN (Lin et al.,
            CVPR 2017, Eq. 1) assigns to its size: P_k with k = floor(4 + log2(sqrt(w h) / 224)), clamped to
            the pyramid.
        detach: whether to stop the gradient at the feature maps.
    """

    def __init__(self, levels: int | str | Sequence[int | str] = (-1,), *, detach: bool = False) -> None:
        super().__init__()
        self.levels = (levels,) if isinstance(levels, (int, str)) else tuple(levels)
        if not self.levels:
            raise ValueError("levels: expected at least one level of the feature pyramid, got none")
        if BOX_SIZE in self.levels and len(self.levels) > 1:
            raise ValueError(f"levels: expected {BOX_SIZE!r} without other levels, got {list(self.levels)}")
        self.detach = detach

    def forward(
        self, pyramid: Sequence[Tensor], boxes: Tensor, count: Tensor, image_size: tuple[int, int]
    ) -> Tensor:
        """Pools one prompt per box.

        Args:
            pyramid: feature maps `[B, C, H_i, W_i]` of a padded batch, finest first.
            boxes: xyxy boxes `[B, L, 4]` in pixels of the padded input.
            count: int `[B]`, number of proposals of each image; later rows are padding, with zero prompts.
            image_size: height and width of the padded input, in pixels.

        Returns:
            Prompts `[B, L, C]`.
        """
        # The exponent k of each map, where 2^k is its stride.
        exponents = [round(math.log2(image_size[0] / features.shape[-2])) for features in pyramid]
        if self.levels == (BOX_SIZE,):
            return self._by_box_size(pyramid, exponents, boxes, count, image_size)
        prompts = [
            self._pool(pyramid[self._index(level, exponents)], boxes, count, image_size)
            for level in self.levels
        ]
        return prompts[0] if len(prompts) == 1 else torch.stack(prompts).mean(0)

    @staticmethod
    def _index(level: int | str, exponents: list[int]) -> int:
        named = {f"P{k}": i for i, k in enumerate(exponents)}
        index = named.get(level) if isinstance(level, str) else level
        if index is None or not -len(exponents) <= index < len(exponents):
            raise ValueError(
                f"levels: expected indices into a pyramid of {len(exponents)} maps, one of "
                f"{', '.join(named)}, or {BOX_SIZE!r}, got {level!r}"
            )
        return index

    def _pool(self, features: Tensor, boxes: Tensor, count: Tensor, image_size: tuple[int, int]) -> Tensor:
        if self.detach:
            features = features.detach()
        height, width = features.shape[-2:]
        scale = to_device([width / image_size[1], height / image_size[0]] * 2, boxes.device, boxes.dtype)
        return roi_average_pool(features, boxes * scale, count)

    def _by_box_size(
        self,
        pyramid: Sequence[Tensor],
        exponents: list[int],
        boxes: Tensor,
        count: Tensor,
        image_size: tuple[int, int],
    ) -> Tensor:
        side = ((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])).clamp(min=0).sqrt()
        level = (4 + (side / 224).log2()).floor()  # [B, L]; -inf for an empty box
        place = sum((level > k).long() for k in exponents[:-1])  # [B, L], index into the pyramid
        prompts = 0.0
        for i, features in enumerate(pyramid):
            here = (place == i).unsqueeze(-1)
            # Sorting the boxes by level would wait for the GPU, so every level pools all boxes, with those of
            # other levels shrunk to one cell.
            pooled = self._pool(features, torch.where(here, boxes, 0), count, image_size)
            prompts = prompts + torch.where(here, pooled, 0)
        return prompts

    def extra_repr(self) -> str:
        """Returns the options, for `print(module)`."""
        return f"levels={self.levels}, detach={self.detach}"


class PromptInjector(nn.Module):
    """Adds one prompt of its image to every kernel (Eq. 6-8). Has no parameters.

    Args:
        strategy: how the prompt of kernel n is chosen. `cosine`: the most similar one; `random`: a new random
            one in each step; `sequential`: number n modulo the count; `none`: no prompt.
        drop_rate: probability of leaving out each prompt in a training step.
    """

    def __init__(self, strategy: str = "cosine", *, drop_rate: float = 0.0) -> None:
        super().__init__()
        if strategy not in STRATEGIES:
            raise ValueError(f"strategy: expected one of {', '.join(STRATEGIES)}, got {strategy!r}")
        if not 0.0 <= drop_rate < 1.0:
            raise ValueError(f"drop_rate: expected a probability in [0, 1), got {drop_rate}")
        self.strategy = strategy
        self.drop_rate = drop_rate

    def forward(self, kernels: Tensor, prompts: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Decorates the kernels.

        Args:
            kernels: kernels `[N, C]`, shared by the batch, or `[B, N, C]`.
            prompts: prompts `[B, L, C]`.
            count: int `[B]`, number of prompts of each image.

        Returns:
            The decorated kernels `[B, N, C]` and the index of each kernel's prompt, int64 `[B, N]`, -1 for
            none. With `drop_rate` the index counts only the prompts that were kept.
        """
        batch, num_kernels = prompts.shape[0], kernels.shape[-2]
        prompts = prompts.to(kernels.dtype)  # dtypes differ under autocast
        if self.training and self.drop_rate and self.strategy != "none":
            prompts, count = self._drop(prompts, count)
        if self.strategy == "cosine":
            return match_prompts(kernels, prompts, count)
        if kernels.dim() == 2:
            kernels = kernels.expand(batch, -1, -1)  # [B, N, C]
        if self.strategy == "none" or prompts.shape[1] == 0:
            return kernels, count.new_full((batch, num_kernels), -1, dtype=torch.int64)
        available = count.view(batch, 1)
        if self.strategy == "random":
            draw = torch.rand(batch, num_kernels, device=prompts.device)
            index = (draw * available).long().minimum(available.long() - 1)
        else:
            index = torch.arange(num_kernels, device=prompts.device) % available.clamp(min=1)
        index = torch.where(available > 0, index, -1).long()
        chosen = prompts.gather(1, index.clamp(min=0).unsqueeze(-1).expand(-1, -1, prompts.shape[-1]))
        return kernels + chosen * (index >= 0).unsqueeze(-1), index

    def _drop(self, prompts: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        slot = torch.arange(prompts.shape[1], device=prompts.device)
        kept = torch.rand(prompts.shape[:2], device=prompts.device) >= self.drop_rate
        kept &= slot < count.view(-1, 1)  # [B, L]
        # The ops take a count, not a mask, so kept prompts move to the front, in order.
        order = torch.argsort(~kept, dim=1, stable=True)
        front = prompts.gather(1, order.unsqueeze(-1).expand_as(prompts))
        return front, kept.sum(1).to(count.dtype)

    def extra_repr(self) -> str:
        """Returns the options, for `print(module)`."""
        return f"strategy={self.strategy!r}, drop_rate={self.drop_rate}"
