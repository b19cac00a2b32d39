"""Folding: the mean prompt that kernels received becomes part of K^0 when prompts are taken away."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from mmengine.dist import all_reduce
from torch import Tensor, nn

FOLDS = ("none", "mean", "kernel")
# The mean reaches over about the last 1 / RECENT of the images so far, however long the run is.
RECENT = 10
_DETECTOR, _MEAN = "detector.", "received.mean"  # in the state of a pre-trainer


class ReceivedPrompts(nn.Module):
    """Running mean of the prompts that kernels received, the same in all processes.

    After n more images, mean <- mean + s (their mean - mean) with s = 10 n / (images before + 10 n): the
    first batch leaves no trace of the initial zeros, and later images weigh more, as prompts drift with the
    features. A kernel that received no prompt counts as 0, so K^0 plus the mean is the expected decorated
    kernel. The buffers are saved with the weights, so a resumed run goes on exactly.

    Attributes:
        mean: fp32 `[N, C]`, or `[1, C]` for one mean over all kernels.
        images: int64, number of images so far, in all processes.

    Args:
        fold: `kernel` for a mean of each kernel, `mean` for one over all kernels.
        num_kernels: N.
        channels: C.
    """

    mean: Tensor
    images: Tensor

    def __init__(self, fold: str, num_kernels: int, channels: int) -> None:
        super().__init__()
        rows = num_kernels if fold == "kernel" else 1
        self.register_buffer("mean", torch.zeros(rows, channels))
        self.register_buffer("images", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self, received: Tensor) -> None:
        """Adds a batch to the mean, together with those of the other processes; does not wait for a GPU.

        Args:
            received: prompt that each kernel received, `[B, N, C]`; zeros for none.
        """
        total = received.float().sum(0)  # [N, C]
        if len(self.mean) == 1:
            total = total.mean(0)
        sums = torch.cat([total.flatten(), total.new_full((1,), len(received))])
        all_reduce(sums)  # with the number of images, which may differ between processes
        total, images = sums[:-1].view_as(self.mean), sums[-1]
        share = RECENT * images / (self.images + RECENT * images)
        self.mean.lerp_(total / images, share)
        self.images += images.long()


def folded(kernels: Tensor, mean: Tensor) -> Tensor:
    """Adds the mean prompt `[N, C]` or `[1, C]` to K^0 `[N, C, ...]`; returns K^0's shape and dtype."""
    return (kernels.flatten(1) + mean.to(kernels.dtype)).view_as(kernels)


def is_folded(state: Mapping[str, Tensor]) -> bool:
    """Whether a pre-trainer's state has a mean prompt to add to K^0."""
    return _MEAN in state


def plain_state(state: Mapping[str, Tensor], initial_kernels: str) -> dict[str, Tensor]:
    """Returns the base model's weights in a pre-trainer's state, with the mean prompt, if any, added to K^0.

    Args:
        state: state of a `SaliencyPromptPretrainer`.
        initial_kernels: name of K^0 in the base model; see `Adapter`.
    """
    weights = {
        name.removeprefix(_DETECTOR): value for name, value in state.items() if name.startswith(_DETECTOR)
    }
    if is_folded(state):
        weights[initial_kernels] = folded(weights[initial_kernels], state[_MEAN])
    return weights
