"""Copies between host and GPU that do not make the host wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def to_device(values: Any, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Copies numbers, an array or a tensor of the host to a device; later work on the device sees them.

    Args:
        values: what `torch.as_tensor` takes; a tensor may be on the device already.
        device: where to.
        dtype: data type of the result; default: that of `values`.
    """
    tensor = torch.as_tensor(values, dtype=dtype)
    if tensor.device.type == "cpu" and device.type not in ("cpu", "mps"):
        tensor = tensor.pin_memory()  # copies from other memory wait
    return tensor.to(device, non_blocking=True)


def together(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Copies arrays of one data type to a device in one transfer, with their shapes."""
    flat = to_device(np.concatenate([one.ravel() for one in arrays]), device)
    parts = flat.split([one.size for one in arrays])
    return [part.view(one.shape) for part, one in zip(parts, arrays, strict=True)]


class Arriving:
    """A tensor on its way to the host. Only reading it waits, for work that was queued before it was made.

    Attributes:
        ready: whether it was on the host from the start.

    Args:
        tensor: tensor on any device.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.ready = tensor.device.type == "cpu"
        self._host = tensor.detach().to("cpu", non_blocking=True)  # into pinned memory
        self._event = None if self.ready else torch.Event(tensor.device)
        if self._event is not None:
            self._event.record()

    def read(self) -> Tensor:
        """The tensor, on the host."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return self._host
