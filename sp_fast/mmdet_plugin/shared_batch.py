"""Batches on their way from a loader's process: all tensors in one piece of shared memory."""

from __future__ import annotations

import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

_ALIGNMENT = 64
_USED = 0  # place of the byte that is 1 while the main process has the batch


class SharedCollate:
    """Wraps a loader's `collate_fn`.

    PyTorch makes a file in shared memory for every tensor that a loader's process passes on, which the main
    process opens and maps. Here they are views of one, so a batch costs the main process one mapping. The
    memory is used again once the main process has dropped the batch: first touching a page takes longer than
    writing to it.

    Args:
        collate: joins samples to a batch, the result that the main process gets.
    """

    def __init__(self, collate: Callable[[list], Any]) -> None:
        self.collate = collate
        self._memories: list[Tensor] = []

    def __call__(self, samples: list) -> Any:
        """The batch; in a loader's process, what becomes the batch in the main process."""
        batch = self.collate(samples)
        return batch if get_worker_info() is None else self.shared(batch)

    def shared(self, batch: Any) -> SharedBatch:
        """Copies the batch's tensors to shared memory."""
        file = io.BytesIO()
        pickler = _Pickler(file)
        pickler.dump(batch)
        memory = self._memory(pickler.size)
        for tensor, start in pickler.tensors:
            _view(memory, tensor.dtype, tensor.shape, start).copy_(tensor)
        memory[_USED] = 1
        return SharedBatch(memory, file.getvalue())

    def _memory(self, size: int) -> Tensor:
        free = [one for one in self._memories if not one[_USED]]
        fitting = [one for one in free if len(one) >= size]
        if fitting:
            return fitting[0]
        # Batches differ a little in size: those that are too small would never be used again.
        self._memories = [one for one in self._memories if one[_USED]]
        storage = torch.UntypedStorage._new_shared(size + size // 4)
        self._memories.append(torch.empty(0, dtype=torch.uint8).set_(storage))
        return self._memories[-1]


class SharedBatch(NamedTuple):
    """A batch that becomes itself again when it is unpickled.

    Attributes:
        memory: its tensors, uint8 `[bytes]`.
        rest: all but its tensors, pickled.
    """

    memory: Tensor
    rest: bytes

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
        self.size = _ALIGNMENT

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
    # The views keep this array alive, so it ends with the last of them.
    lent = memory.numpy()[:]
    weakref.finalize(lent, _give_back, memory)
    unpickler = _Unpickler(io.BytesIO(rest))
    unpickler.memory = torch.from_numpy(lent)
    return unpickler.load()


def _give_back(memory: Tensor) -> None:
    memory[_USED] = 0


def _view(memory: Tensor, dtype: torch.dtype, shape: tuple[int, ...], start: int) -> Tensor:
    size = torch.Size(shape).numel() * dtype.itemsize
    return memory[start : start + size].view(dtype).view(shape)
