"""Batches on their way from a loader's process: all tensors in one piece of shared memory."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

_ALIGNMENT = 64


class SharedCollate:
    """Wraps a loader's `collate_fn`.

    PyTorch makes a file in shared memory for every tensor that a loader's process passes on, which the main
    process opens and maps. Here they are views of one, so a batch costs the main process one mapping.

    Args:
        collate: joins samples to a batch, the result that the main process gets.
    """

    def __init__(self, collate: Callable[[list], Any]) -> None:
        self.collate = collate

    def __call__(self, samples: list) -> Any:
        """The batch; in a loader's process, what becomes the batch in the main process."""
        batch = self.collate(samples)
        return batch if get_worker_info() is None else SharedBatch(batch)


class SharedBatch:
    """A batch that becomes itself again when it is unpickled."""

    def __init__(self, batch: Any) -> None:
        file = io.BytesIO()
        pickler = _Pickler(file)
        pickler.dump(batch)
        self.rest = file.getvalue()
        # Not initialised: a page of it is touched once, when a tensor is copied to it.
        storage = torch.UntypedStorage._new_shared(max(1, pickler.size))
        self.memory = torch.empty(0, dtype=torch.uint8).set_(storage)
        for tensor, start in pickler.tensors:
            _view(self.memory, tensor.dtype, tensor.shape, start).copy_(tensor)

    def __reduce__(self) -> tuple[Callable, tuple]:
        return _unpickled, (self.memory, self.rest)


class _Pickler(pickle.Pickler):
    """Leaves out the tensors, and gives each a place.

    Attributes:
        tensors: the tensors and where they begin, in bytes.
        size: bytes of all of them.
    """

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, pickle.HIGHEST_PROTOCOL)
        self.tensors: list[tuple[Tensor, int]] = []
        self.size = 0

    def persistent_id(self, value: Any) -> tuple | None:
        if type(value) is not Tensor or value.device.type != "cpu" or value.layout != torch.strided:
            return None
        start = self.size
        self.tensors.append((value, start))
        self.size += -(-value.nbytes // _ALIGNMENT) * _ALIGNMENT
        return value.dtype, tuple(value.shape), start


class _Unpickler(pickle.Unpickler):
    memory: Tensor

    def persistent_load(self, identifier: Any) -> Tensor:
        return _view(self.memory, *identifier)


def _unpickled(memory: Tensor, rest: bytes) -> Any:
    unpickler = _Unpickler(io.BytesIO(rest))
    unpickler.memory = memory
    return unpickler.load()


def _view(memory: Tensor, dtype: torch.dtype, shape: tuple[int, ...], start: int) -> Tensor:
    size = torch.Size(shape).numel() * dtype.itemsize
    return memory[start : start + size].view(dtype).view(shape)
