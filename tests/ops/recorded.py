"""Which ops a block of code runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "sp_fast":
            self.found.add(func._opname)
        return func(*args, **(kwargs or {}))


@contextmanager
def recorded_ops() -> Iterator[set[str]]:
    """Collect the names of the ops of `torch.ops.sp_fast` that run in the block, backward passes included."""
    with _Recording() as recording:
        yield recording.found


def registered_ops() -> set[str]:
    """Names of all ops of `torch.ops.sp_fast`."""
    names = torch._C._dispatch_get_all_op_names()
    return {name.removeprefix("sp_fast::") for name in names if name.startswith("sp_fast::")}
