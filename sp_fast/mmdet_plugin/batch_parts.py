"""Training steps in parts: several batches in turn, or a batch that does not fit in a GPU's memory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from mmengine.dist import get_world_size
from torch import Tensor, nn

from sp_fast.mmdet_plugin.samplers import bounds


class NotEnoughMemoryError(RuntimeError):
    """A training step needs more memory than the GPU has."""


class BatchParts:
    """Takes a training step in the given number of parts, or in as many more as the memory of the GPU needs.

    The parts' gradients are added up, weighted by their images, for one step of the optimiser; processes
    exchange them once, in the last part. Learning rate, image order and number of steps stay the same. The
    result differs slightly from that of the whole batch where a loss is normalised by the number of matched
    objects, where batch norm learns its statistics, where images are padded to the largest of their part,
    and in what is drawn at random.

    Attributes:
        count: number of pieces that each given part is split into, for lack of memory.

    Args:
        parts: number of parts, the same in each process.
        mean_share: images of a step in a process, on average, where the processes' numbers differ.
    """

    def __init__(self, parts: int = 1, mean_share: float | None = None) -> None:
        self.parts, self.mean_share = parts, mean_share
        self.count = 1

    def train_step(
        self, model: nn.Module, data_batch: Mapping[str, list], optim_wrapper: Any
    ) -> dict[str, Tensor] | None:
        """One step; returns the losses to log, or None to be called again, with twice as many parts.

        Args:
            model: model with mmengine's `train_step`.
            data_batch: lists with an item per image.
            optim_wrapper: mmengine's.

        Raises:
            NotEnoughMemoryError: the memory is too small for one image or for the optimiser's state; or the
                step cannot be repeated, because the optimiser holds gradients of earlier steps, or because
                other processes would have to repeat it too.
        """
        images = len(next(iter(data_batch.values())))
        mean_share = self.mean_share or images
        count = min(self.parts * self.count, int(mean_share))
        before, accumulated = optim_wrapper._inner_count, optim_wrapper._accumulative_counts > 1
        logs: dict[str, Tensor] = {}
        shortage = ""
        try:
            for start, end in bounds(images, count):
                part = {name: items[start:end] for name, items in data_batch.items()}
                weight = (end - start) / mean_share
                gradients = _Gradients(optim_wrapper, weight, last=end == images)
                for name, value in model.train_step(part, optim_wrapper=gradients).items():
                    logs[name] = logs.get(name, 0) + (end - start) / images * value.detach()
        except torch.OutOfMemoryError as error:
            shortage = str(error)
        if not shortage:
            optim_wrapper._inner_count = before + 1
            return {**self._update(optim_wrapper), **logs}
        # Only now, that the error no longer holds the step's tensors, can their memory be given back.
        optim_wrapper.zero_grad()
        optim_wrapper._inner_count = before
        torch.cuda.empty_cache()
        if count >= images or accumulated or get_world_size() > 1:
            raise NotEnoughMemoryError(_advice(-(-images // count), shortage))
        self.count *= 2
        print(
            f"out of memory with {-(-images // count)} images at once: from here on, each batch of {images} "
            f"is taken in {min(self.parts * self.count, images)} parts, whose gradients are added up",
            flush=True,
        )
        return None

    def _update(self, optim_wrapper: Any) -> dict[str, Tensor]:
        """The optimiser's step, if one is due; returns the norm of the gradients by its name, if known."""
        if not optim_wrapper.should_update():
            return {}
        try:
            with _norm_on_device(optim_wrapper) as norm:
                optim_wrapper.step()
        except torch.OutOfMemoryError as error:  # some parameters may have been updated: no second try
            raise NotEnoughMemoryError(_advice(0, str(error))) from error
        optim_wrapper.zero_grad()
        return norm


@contextlib.contextmanager
def _norm_on_device(optim_wrapper: Any) -> Iterator[dict[str, Tensor]]:
    """Within its block, clipping puts the norm of the gradients here; mmengine would wait for its value."""
    found: dict[str, Tensor] = {}
    if not optim_wrapper.clip_grad_kwargs:
        yield found
        return
    clip = optim_wrapper.clip_func

    def clipped(*args: Any, **kwargs: Any) -> None:
        norm = clip(*args, **kwargs)
        if norm is not None:
            found[optim_wrapper.grad_name] = norm

    optim_wrapper.clip_func = clipped
    try:
        yield found
    finally:
        optim_wrapper.clip_func = clip


class _Gradients:
    """Stands for the optimiser in a part's `train_step`: adds up gradients, updates nothing."""

    def __init__(self, optim_wrapper: Any, weight: float, last: bool) -> None:
        self._optim_wrapper, self._weight, self._last = optim_wrapper, weight, last

    @contextlib.contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Mixed precision as in the optimiser; processes exchange gradients in the last part only."""
        local = not self._last and hasattr(model, "no_sync")
        apart: Any = model.no_sync() if local else contextlib.nullcontext()  # type: ignore[operator]
        with apart, self._optim_wrapper.optim_context(model):
            yield

    def update_params(self, loss: Tensor) -> None:
        """Adds the gradients of the part's share of the loss."""
        self._optim_wrapper.backward(self._optim_wrapper.scale_loss(loss) * self._weight)


def _advice(images: int, shortage: str) -> str:
    what = f"a step of {images} image{'s' * (images > 1)}" if images else "the state of the optimiser"
    ways = "smaller images (the pipeline's Resize), --amp, a smaller model"
    several = "a smaller --batch-size (--total-batch keeps the effective batch), " if images > 1 else ""
    return f"{what} does not fit in the GPU's memory: {several}{ways} may help. CUDA's message: {shortage}"
